"""Tests of rsn2_kernels."""
