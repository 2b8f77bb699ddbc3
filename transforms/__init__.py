"""Program transformations over jaxprs; users import :mod:`ppl`."""
