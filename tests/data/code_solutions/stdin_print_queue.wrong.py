import sys
queue = {}
for line in sys.stdin:
    word, *rest = line.split()
    if word == "add":
        queue[rest[0]] = int(rest[1])
    elif word == "cancel":
        del queue[rest[0]]
    else:
        pages = int(rest[0])
        for name in list(queue):
            done = min(pages, queue[name])
            queue[name] -= done
            pages -= done
            if not queue[name]:
                del queue[name]
print("left", sum(queue.values()))
