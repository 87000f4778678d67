def queens_count(size):
    def place(row, columns):
        if row == size:
            return 1
        return sum(
            place(row + 1, [*columns, c])
            for c in range(size)
            if c not in columns and (not columns or abs(columns[-1] - c) != 1)
        )
    return place(0, [])
