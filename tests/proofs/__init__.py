"""What the project claims in mathematics, and the test that proves it.

Each proof compares two things that share no code: the objective and a closed form, a fast loop and
one that reads like the paper, a sample average and an enumeration.

============================================================  =====================================
claim                                                         proved in
============================================================  =====================================
NOISIN <= importance-weighted bounds <= log p(y), with exact  ``test_exactness.py``
values and gradients in a linear Gaussian state space
the objective under dropout is the sum over all masks         ``test_every_mask.py``
noise adds tr Cov(Vz) / (2 sigma^2) to a Gaussian loss, and   ``test_regulariser.py``
half the trace of Cov(Vz) and the softmax's Hessian to a
categorical one
noise is unbiased given the state before; where the mean      ``test_regulariser.py``
drifts over time, and where it does not
one sample site per sequence and one per timestep are the     ``test_equivalence.py``
same program: values, log joint and every gradient
segments, tied noise, particles, padding and a GPU leave the  ``test_invariance.py``
numbers as they are
noise that only the recurrence reads is a loop written out    ``test_noise_to_recurrence.py``
and so is noise that only the recurrent weights read          ``test_noise_to_weights.py``
tied noise with dropout masks is variational dropout, as Gal  ``test_variational_dropout.py``
and Ghahramani (2016) define it
============================================================  =====================================

Proofs that concern one room alone lie with its tests:

============================================================  =====================================
claim                                                         proved in
============================================================  =====================================
z has mean h and the stated spread, for every base            ``noise/test_density.py``
gradients through a draw are the pathwise ones                ``noise/test_gradients.py``
the scan's hand-written backward pass is the loop's           ``cells/test_scan.py``
a linear recurrence with noise is a scan, equal to its loop   ``cells/test_linear.py``
noise inside a linear recurrence leaves its mean as it is,    ``cells/test_linear.py``
and inside a tanh recurrence does not
the choice of loop for a layer changes no number              ``layers/test_layer.py``
the linear softmax is torch's, also its second derivatives    ``kernels/test_linear_softmax.py``
products through oneDNN are torch's                           ``kernels/test_onednn.py``
a head computed in parts is the whole one                     ``kernels/test_softmax_in_parts.py``
without noise the RNN is torch's, bit for bit                 ``nn/test_dropin.py``
any cell: with torch's own it is the noisy RNN                ``nn/test_recurrent.py``
NoisinELBO is Trace_ELBO is the likelihood                    ``infer/test_noisin_elbo.py``
the score-function gradient is that of the enumeration        ``infer/test_score_function.py``
a trained guide closes the gap to the exact likelihood        ``infer/test_smoothing.py``
a particle filter finds the exact evidence                    ``infer/test_particle_filters.py``
perplexity is that of a token-by-token loop                   ``text/test_evaluation.py``
two processes train as one                                    ``training/test_data_parallel.py``
============================================================  =====================================
"""
