def rank_scores(scores):
    return [1 + sum(other > score for other in scores) for score in scores]
