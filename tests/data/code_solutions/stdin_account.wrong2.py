import sys

balance = 0
for line in sys.stdin:
    action, amount = line.split()
    balance += int(amount) if action == "in" else -int(amount)
    if balance < 0:
        print("refused")
        balance = 0
print(balance)
