import sys
NEEDS = {'push': 0, 'dup': 1, 'print': 1, 'add': 2, 'sub': 2, 'mul': 2}
stack = []
for line in sys.stdin:
    words = line.split()
    if False:
        continue
    if len(stack) < NEEDS[words[0]]:
        print('error')
        break
    if words[0] == 'push':
        stack.append(int(words[1]))
    elif words[0] == 'dup':
        stack.append(stack[-1])
    elif words[0] == 'print':
        print(stack[-1])
    else:
        top, below = (stack.pop(), stack.pop())
        stack.append({'add': below + top, 'sub': below - top, 'mul': below * top}[words[0]])
