import sys
width, *numbers = map(int, sys.stdin.read().split())
starts = [number // width * width for number in numbers]
for start in sorted(set(starts)):
    print(f"{start}: {starts.count(start)}")
