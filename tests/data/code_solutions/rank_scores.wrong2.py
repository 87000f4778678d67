def rank_scores(scores):
    ordered = sorted(set(scores), reverse=True)
    return [ordered.index(score) + 1 for score in scores]
