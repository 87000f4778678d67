def split_csv_line(line):
    fields, field, quoted, index = [], "", False, 0
    while index < len(line):
        letter = line[index]
        if letter == '"':
            if quoted and line[index + 1:index + 2] == '"':
                field += '"'
                index += 1
            else:
                quoted = not quoted
        elif letter == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += letter
        index += 1
    return [*fields, field]
