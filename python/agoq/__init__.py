"""The Python side of AGoQ: preparing data and drawing runs. Training itself is the C++ program `agoq`."""
