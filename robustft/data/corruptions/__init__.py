"""The fifteen corruptions of ImageNet-C at five severities (Hendrycks and Dietterich, arXiv
1903.12261), of any labelled images (apply.py).

Definitions and constants are those of the code that made ImageNet-C (hendrycks/robustness,
ImageNet-C/create_c/make_imagenet_c.py), on NumPy, SciPy and Pillow: what OpenCV, scikit-image and
ImageMagick do there is said in their terms.
"""
