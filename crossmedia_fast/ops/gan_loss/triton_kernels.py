"""The GAN losses as Triton kernels: the loss and its gradients in one pass over the logits.

Formula by formula the twin of csrc/common/gan_loss.h. A loss is a sum of terms, each a function of
one to three tensors; the kernels take the tensors of all terms as tuples, so that a list of scales
is one launch too. Sums are kept in the order of the programs: the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..conv_act_pool.triton_kernels.activation import log1p


@triton.jit
def logistic(x):
    """log(1 + exp(-|x|)), sigmoid(-|x|) and whether x > 0: exact where sigmoid is nearly 0 or 1."""
    odds = tl.exp(-tl.abs(x))
    return log1p(odds), odds / (1.0 + odds), x > 0.0


@triton.jit
def log_loss_of_logits(x, target, grad):
    """softplus(x) - t x as c x + log(1 + exp(-|x|)): c = 1 - t for x > 0, else -t."""
    softplus, small, positive = logistic(x)
    c = tl.where(positive, 1.0 - target, -target)
    # c = 0: no loss at an infinite logit, not 0 · inf
    value = tl.where(c == 0.0, 0.0, c * x) + softplus
    return value, grad * c + grad * tl.where(positive, -small, small), grad * -x


@triton.jit
def log_loss_of_logits_like_torch(x, target, grad):
    """The same, at infinite logits what PyTorch gives for a tensor of targets: inf, or NaN."""
    softplus, small, positive = logistic(x)
    c = tl.where(positive, 1.0 - target, -target)
    infinite = (1.0 - target) * x - tl.where(positive, 0.0, x)
    value = tl.where(tl.abs(x) == float("inf"), infinite, c * x + softplus)
    return value, grad * (c + tl.where(positive, -small, small)), grad * -x


@triton.jit
def log_loss_of_probabilities(p, target, grad):
    """-t log p - (1 - t) log(1 - p), with F.binary_cross_entropy's guards; NaN outside [0, 1].

    Logarithms not below -100, derivative (p - t) / max(p (1 - p), 1e-12). Where the CPU raises, NaN
    comes out: asking would make the host wait for the device.
    """
    target = target + tl.zeros_like(p)  # a label is one number
    inside = (p >= 0.0) & (p <= 1.0) & (target >= 0.0) & (target <= 1.0)
    log_p = tl.log(p)
    log_q = log1p(-p)
    clamped_p = tl.where(log_p < -100.0, -100.0, log_p)
    clamped_q = tl.where(log_q < -100.0, -100.0, log_q)
    value = (target - 1.0) * clamped_q - target * clamped_p
    variance = (1.0 - p) * p
    dx = grad * (p - target) / tl.where(variance < 1e-12, 1e-12, variance)
    return tl.where(inside, value, float("nan")), dx, grad * (log_q - log_p)


@triton.jit
def evaluate(x, y, weight, parameter, grad, FUNCTION: tl.constexpr):
    """value, grad · d/dx and grad · d/dy of one element; arguments.OPERANDS has the names."""
    dy = grad
    if FUNCTION == "log_loss_logits":
        value, dx, dy = log_loss_of_logits(x, parameter, grad)
    elif FUNCTION == "log_loss_probabilities":
        value, dx, dy = log_loss_of_probabilities(x, parameter, grad)
    elif FUNCTION == "least_squares":
        difference = x - parameter
        value = difference * difference * 0.5
        dx = grad * difference
    elif FUNCTION == "hinge":  # the flat side gives 0, not 0 · grad, and NaN is not on it
        margin = 1.0 + parameter * x
        value = tl.where(margin <= 0.0, 0.0, margin)
        dx = tl.where(margin <= 0.0, 0.0, grad * parameter)
    elif FUNCTION == "linear":
        value = x
        dx = grad + tl.zeros_like(x)
    elif FUNCTION == "relativistic":  # softplus(x - y)
        softplus, small, positive = logistic(x - y)
        value = tl.where(positive, x - y, 0.0) + softplus
        dx = grad * tl.where(positive, 1.0 - small, small)
        dy = -dx
    elif FUNCTION == "log_loss_logits_target":
        value, dx, dy = log_loss_of_logits_like_torch(x, y, grad)
    elif FUNCTION == "log_loss_probabilities_target":
        value, dx, dy = log_loss_of_probabilities(x, y, grad)
    elif FUNCTION == "log_loss_logits_target_weight":
        value, dx, dy = log_loss_of_logits_like_torch(x, y, grad * weight)
        value *= weight
    else:
        tl.static_assert(FUNCTION == "log_loss_probabilities_target_weight")
        value, dx, dy = log_loss_of_probabilities(x, y, grad * weight)
        value *= weight
    return value, dx, dy


@triton.jit
def load_operand(
    operands,
    TERM: tl.constexpr,
    WHICH: tl.constexpr,
    OPERANDS: tl.constexpr,
    element,
    mask,
    ACC: tl.constexpr,
):
    """Operand WHICH of a term; 0 where its function takes fewer."""
    x = tl.zeros_like(element).to(ACC)
    if WHICH < OPERANDS:
        x = tl.load(operands[TERM * OPERANDS + WHICH] + element, mask=mask, other=0.0).to(ACC)
    return x


@triton.jit
def gan_loss_reduced(
    operands,  # a tuple: the tensors of each term, dense
    gradients,  # a tuple: room for their gradients; any pointer where WANTED says no
    grad_ptr,  # [], the incoming gradient; read where INCOMING
    partial_ptr,  # [programs]: what each program adds to the loss; or [] where there is one alone
    counts,  # a tuple: elements, a term each
    first_programs,  # a tuple: where the programs of each term begin; and where the last ends
    blocks,  # of BLOCK elements, a program each
    parameters,  # tuples, a term each: the parameter and the scale, each as a float32 and the rest
    parameter_rests,
    scales,
    scale_rests,
    FUNCTION: tl.constexpr,
    OPERANDS: tl.constexpr,  # a term
    TERMS: tl.constexpr,
    WANTED: tl.constexpr,  # a tuple of booleans, an operand each
    MEAN: tl.constexpr,
    NEED_LOSS: tl.constexpr,
    INCOMING: tl.constexpr,
    SKIP_ONE: tl.constexpr,  # the gradients for an incoming gradient of 1 are there already
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over terms of scale · mean or sum of the function, and its gradients."""
    program = tl.program_id(0)
    incoming = tl.full((), 1.0, ACC)
    if INCOMING:
        incoming = tl.load(grad_ptr).to(ACC)
    if (SKIP_ONE == 0) | (incoming != 1.0):
        for term in tl.static_range(TERMS):
            first = first_programs[term]
            if (program >= first) & (program < first_programs[term + 1]):
                count = counts[term]
                parameter = tl.cast(parameters[term], ACC) + tl.cast(parameter_rests[term], ACC)
                scale = tl.cast(scales[term], ACC) + tl.cast(scale_rests[term], ACC)
                if MEAN:
                    scale = scale / tl.cast(count, ACC)
                grad = incoming * scale
                base = program - first
                if WIDE:
                    base = base.to(tl.int64)
                base = base * blocks * BLOCK
                values = tl.zeros((BLOCK,), ACC)
                for block in range(blocks):
                    element = base + block * BLOCK + tl.arange(0, BLOCK)
                    mask = element < count
                    x = load_operand(operands, term, 0, OPERANDS, element, mask, ACC)
                    y = load_operand(operands, term, 1, OPERANDS, element, mask, ACC)
                    weight = load_operand(operands, term, 2, OPERANDS, element, mask, ACC)
                    value, dx, dy = evaluate(x, y, weight, parameter, grad, FUNCTION)
                    values += tl.where(mask, value, 0.0)
                    if WANTED[term * OPERANDS]:
                        dx_ptr = gradients[term * OPERANDS]
                        tl.store(dx_ptr + element, dx.to(dx_ptr.dtype.element_ty), mask=mask)
                    if OPERANDS > 1:  # noqa: SIM102, the second needs the first
                        if WANTED[term * OPERANDS + 1]:
                            dy_ptr = gradients[term * OPERANDS + 1]
                            tl.store(dy_ptr + element, dy.to(dy_ptr.dtype.element_ty), mask=mask)
                if NEED_LOSS:
                    total = tl.sum(values, axis=0) * scale
                    tl.store(partial_ptr + program, total.to(partial_ptr.dtype.element_ty))


@triton.jit
def sum_programs(partial_ptr, loss_ptr, programs, BLOCK: tl.constexpr):
    """loss = the sum of what the programs added, in one program and so in one order."""
    total = tl.zeros((BLOCK,), partial_ptr.dtype.element_ty)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + index, mask=index < programs, other=0.0)
    tl.store(loss_ptr, tl.sum(total, axis=0).to(loss_ptr.dtype.element_ty))


@triton.jit
def gan_loss_elements(
    operands,  # a tuple: the tensors of each term, all alike in memory
    gradients,
    grad_ptr,  # [*], the incoming gradient; read where INCOMING
    loss_ptr,  # [*]
    count,
    parameters,  # as in gan_loss_reduced
    parameter_rests,
    scales,
    scale_rests,
    FUNCTION: tl.constexpr,
    OPERANDS: tl.constexpr,
    TERMS: tl.constexpr,
    WANTED: tl.constexpr,
    INCOMING: tl.constexpr,  # gradients; else the loss
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss of each element, summed over terms; or the gradients."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    element = program * BLOCK + tl.arange(0, BLOCK)
    mask = element < count
    incoming = tl.full((BLOCK,), 1.0, ACC)
    if INCOMING:
        incoming = tl.load(grad_ptr + element, mask=mask, other=0.0).to(ACC)
    total = tl.zeros((BLOCK,), ACC)
    for term in tl.static_range(TERMS):
        parameter = tl.cast(parameters[term], ACC) + tl.cast(parameter_rests[term], ACC)
        scale = tl.cast(scales[term], ACC) + tl.cast(scale_rests[term], ACC)
        x = load_operand(operands, term, 0, OPERANDS, element, mask, ACC)
        y = load_operand(operands, term, 1, OPERANDS, element, mask, ACC)
        weight = load_operand(operands, term, 2, OPERANDS, element, mask, ACC)
        value, dx, dy = evaluate(x, y, weight, parameter, incoming * scale, FUNCTION)
        total += value * scale
        if INCOMING:
            if WANTED[term * OPERANDS]:
                dx_ptr = gradients[term * OPERANDS]
                tl.store(dx_ptr + element, dx.to(dx_ptr.dtype.element_ty), mask=mask)
            if OPERANDS > 1:  # noqa: SIM102, the second needs the first
                if WANTED[term * OPERANDS + 1]:
                    dy_ptr = gradients[term * OPERANDS + 1]
                    tl.store(dy_ptr + element, dy.to(dy_ptr.dtype.element_ty), mask=mask)
    if INCOMING == 0:
        tl.store(loss_ptr + element, total.to(loss_ptr.dtype.element_ty), mask=mask)


# torch.compile follows pointers one by one, not in tuples: the same kernels with eight of each.
# What varies from call to call above is a constant of the graph here.


@triton.jit
def gan_loss_reduced_flat(
    operand_0,
    operand_1,
    operand_2,
    operand_3,
    operand_4,
    operand_5,
    operand_6,
    operand_7,
    gradient_0,
    gradient_1,
    gradient_2,
    gradient_3,
    gradient_4,
    gradient_5,
    gradient_6,
    gradient_7,
    grad_ptr,
    partial_ptr,
    blocks,
    COUNTS: tl.constexpr,
    FIRST_PROGRAMS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    PARAMETER_RESTS: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_RESTS: tl.constexpr,
    FUNCTION: tl.constexpr,
    OPERANDS: tl.constexpr,
    TERMS: tl.constexpr,
    WANTED: tl.constexpr,
    MEAN: tl.constexpr,
    NEED_LOSS: tl.constexpr,
    INCOMING: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`gan_loss_reduced` of at most eight tensors."""
    gan_loss_reduced(
        (operand_0, operand_1, operand_2, operand_3, operand_4, operand_5, operand_6, operand_7),
        (
            gradient_0,
            gradient_1,
            gradient_2,
            gradient_3,
            gradient_4,
            gradient_5,
            gradient_6,
            gradient_7,
        ),
        grad_ptr,
        partial_ptr,
        COUNTS,
        FIRST_PROGRAMS,
        blocks,
        PARAMETERS,
        PARAMETER_RESTS,
        SCALES,
        SCALE_RESTS,
        FUNCTION,
        OPERANDS,
        TERMS,
        WANTED,
        MEAN,
        NEED_LOSS,
        INCOMING,
        SKIP_ONE,
        ACC,
        WIDE,
        BLOCK,
    )


@triton.jit
def gan_loss_elements_flat(
    operand_0,
    operand_1,
    operand_2,
    operand_3,
    operand_4,
    operand_5,
    operand_6,
    operand_7,
    gradient_0,
    gradient_1,
    gradient_2,
    gradient_3,
    gradient_4,
    gradient_5,
    gradient_6,
    gradient_7,
    grad_ptr,
    loss_ptr,
    count,
    PARAMETERS: tl.constexpr,
    PARAMETER_RESTS: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE_RESTS: tl.constexpr,
    FUNCTION: tl.constexpr,
    OPERANDS: tl.constexpr,
    TERMS: tl.constexpr,
    WANTED: tl.constexpr,
    INCOMING: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`gan_loss_elements` of at most eight tensors."""
    gan_loss_elements(
        (operand_0, operand_1, operand_2, operand_3, operand_4, operand_5, operand_6, operand_7),
        (
            gradient_0,
            gradient_1,
            gradient_2,
            gradient_3,
            gradient_4,
            gradient_5,
            gradient_6,
            gradient_7,
        ),
        grad_ptr,
        loss_ptr,
        count,
        PARAMETERS,
        PARAMETER_RESTS,
        SCALES,
        SCALE_RESTS,
        FUNCTION,
        OPERANDS,
        TERMS,
        WANTED,
        INCOMING,
        ACC,
        WIDE,
        BLOCK,
    )
