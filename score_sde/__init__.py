"""Score-based generative modeling through stochastic differential equations (Song et al., 2021, arXiv:2011.13456).

Data is carried to noise by an SDE; training targets, samplers and likelihoods are pure functions of that SDE and of a
score. Start reading at `score_sde.sde`, then `parameterization`, `losses`, `sampling`, `likelihood`, `training`.
"""
