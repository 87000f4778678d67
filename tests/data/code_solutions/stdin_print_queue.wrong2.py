import sys
queue = []
for line in sys.stdin:
    word, *rest = line.split()
    if word == "add":
        queue.append([rest[0], int(rest[1])])
    elif word == "cancel":
        queue = [job for job in queue if job[0] != rest[0]]
    else:
        pages = int(rest[0])
        while queue and pages >= queue[0][1]:
            pages -= queue[0][1]
            print(queue.pop(0)[0])
        if queue:
            queue[0][1] -= pages
print("left", sum(pages for _, pages in queue))
