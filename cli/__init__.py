"""The `sdpo` command, one command a file; installed as `sdpo_cli`."""
