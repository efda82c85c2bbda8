"""What the tests of the mathematics share."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
