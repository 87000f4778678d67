def build_order(needs):
    order = []

    def visit(job):
        if job not in order:
            for need in sorted(needs[job]):
                visit(need)
            order.append(job)

    for job in sorted(needs):
        visit(job)
    return order
