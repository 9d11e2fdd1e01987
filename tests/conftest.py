"""One thread for tiny tensors: threads cost more than they save, and results repeat to the bit."""

import torch

torch.set_num_threads(1)
