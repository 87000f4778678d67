"""The checks of `sdpo doctor`."""
