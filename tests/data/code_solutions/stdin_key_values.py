import sys
settings = {}
for line in sys.stdin:
    if line.strip() and not line.strip().startswith("#"):
        name, _, value = line.partition("=")
        settings[name.strip()] = value.strip()
for name in sorted(settings):
    print(f"{name}={settings[name]}")
