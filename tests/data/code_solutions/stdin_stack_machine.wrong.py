import sys

stack = []
for line in sys.stdin:
    words = line.split()
    if not words:
        continue
    if words[0] == "push":
        stack.append(int(words[1]))
    elif words[0] == "dup":
        stack.append(stack[-1])
    elif words[0] == "print":
        print(stack[-1])
    else:
        top, below = stack.pop(), stack.pop()
        stack.append({"add": below + top, "sub": top - below, "mul": below * top}[words[0]])
