def queens_count(size):
    def place(row, columns, up, down):
        if row == size:
            return 1
        return sum(
            place(row + 1, columns | {c}, up | {row + c}, down | {row - c})
            for c in range(size)
            if c not in columns and row + c not in up and row - c not in down
        )
    return place(0, frozenset(), frozenset(), frozenset())
