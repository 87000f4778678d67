"""One module for each command of `sdpo`."""
