"""ViCo (Hao et al. 2023, arXiv 2306.00971): a frozen model looks at a picture of the subject while it draws. Pure torch."""
