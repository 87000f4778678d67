import sys

balance = 0
for line in sys.stdin:
    if not line.strip():
        continue
    action, amount = line.split()
    if action == "in":
        balance += int(amount)
    elif int(amount) < balance:
        balance -= int(amount)
    else:
        print("refused")
print(balance)
