"""The Triton kernels of conv_act_pool2d. Importing a module of this package imports Triton."""
