"""The paper's score decomposition, measured on images."""
