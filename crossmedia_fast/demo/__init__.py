"""The demo: a CNN and two GANs trained on real images with the fused operations.

`python -m crossmedia_fast demo` runs it. Data flows one way:

    cli -> pipeline -> data (idx, folder, augment) -> train_cnn, train_gan -> judge, compare
        -> report

Nothing here is imported by the rest of the package.
"""
