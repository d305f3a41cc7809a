"""The Gamma mixed logit in closed form."""
