import sys
width, *numbers = sys.stdin.read().split()
starts = [str(int(number) // int(width) * int(width)) for number in numbers]
for start in sorted(set(starts)):
    print(f"{start}: {starts.count(start)}")
