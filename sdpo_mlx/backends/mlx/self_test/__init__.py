"""The part of `sdpo doctor --self-test` that computes: random models on this machine's device, held against the CPU."""
