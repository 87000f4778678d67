import sys
width, *numbers = map(int, sys.stdin.read().split())
for start in range(0, max(numbers) + 1, width):
    print(f"{start}: {sum(start <= number <= start + width for number in numbers)}")
