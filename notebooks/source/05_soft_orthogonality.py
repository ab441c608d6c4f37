# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Soft orthogonality
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/sobook/sobook/blob/main/notebooks/05_soft_orthogonality.ipynb)
#
# Proxy Anchor has no term between proxies. Soft orthogonality adds one: different proxies should be at right angles. This notebook derives it, finds out what it can and cannot reach, and then asks whether it helps.
#
# **What you will learn**
#
# - that proxies are nearly orthogonal *by chance* before training, and that training is what correlates them;
# - the definition of soft orthogonality (SO), its gradient, and why rows are normalized and pairs averaged;
# - an identity that makes it cheap for thousands of classes;
# - how low it can get when there are more classes than dimensions, and why that says little about the worst pair;
# - what SO did to the proxies and to retrieval in two runs that differ in nothing else, and over a range of weights $\lambda$;
# - to carry the term into your own code, with a library's Proxy Anchor.
#
# **Before you start** Notebook 04. You need matrix products, traces, singular values and the gradient of a function of a matrix.
#
# **Time** About a minute of computing on a two-core laptop: the two training runs come with the course.
#
# Sections ask before they show. Write your prediction in place of `None`, run the cell, then open the answer.

# %% tags=["setup"]
from sobook.course import setup

session = setup()
# %%
import math
import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.patches import Circle
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import nn

from sobook import figures, geometry
from sobook.course import exercises
from sobook.course.predictions import predict, reveal
from sobook.data import benchmarks, image_sets
from sobook.embedding import embed
from sobook.encoder import Encoder
from sobook.course.pages import lab
from sobook.losses import (
    SO_WEIGHT,
    ProxyAnchor,
    SoftOrthogonalProxyAnchor,
    soft_orthogonality,
)
from sobook.retrieval import evaluate
from sobook.statistics import (
    compare_classes,
    compare_seeds,
    t_interval,
    verdict,
)

# %% [markdown]
# Notation: $C$ classes (and proxies), $D$ dimensions, $N$ images, $P$ the $(C, D)$ matrix of proxies, $\hat P$ the same with rows of unit length.


# %%
def cmp(what, ours, reference):
    """Largest difference of two tensors; whether it is just rounding."""
    ours, reference = (
        torch.as_tensor(ours).detach(),
        torch.as_tensor(reference).detach(),
    )
    same = torch.allclose(ours, reference, rtol=1e-4, atol=1e-6)
    print(
        f"{what:<52} largest difference {(ours - reference).abs().max():.0e}  "
        f"{'same' if same else 'DIFFERENT'}"
    )


# %% [markdown] tags=["slide"]
# ## 1 · Do proxies crowd?
#
# Before blaming training for anything, look at chance. **Predict:** two random directions in the plane are at any angle. What about two random directions in 128 dimensions? What is the typical size of their cosine?

# %%
predict("05.a", None)

# %% tags=["slide"]
generator = torch.Generator().manual_seed(session.seed)
rows = []
for D in (2, 8, 32, 128, 512):
    random = geometry.describe(torch.randn(200, D, generator=generator))
    rows.append([D, random.rms_cosine, 1 / math.sqrt(D), random.coherence])
chance = pd.DataFrame(
    rows,
    columns=[
        "D",
        "RMS cosine of 200 random directions",
        "1/√D",
        "largest |cosine|",
    ],
)
reveal("05.a", chance.round(3), truth=rows[3][1])

# %% [markdown]
# The cosine of random directions has mean 0 and variance $1/D$. (Turn one of the two onto the first axis: the cosine is then the first coordinate of a random unit vector, and the squares of its $D$ coordinates sum to 1.) In many dimensions **near-orthogonality costs nothing**. The largest of many cosines is another matter; it is always well above $1/\sqrt D$.
#
# So take a trained set of proxies and hold it against its own start. **Predict.** Will training with Proxy Anchor push the proxies apart, or together?

# %%
predict("05.b", None, choices=("apart", "as they were", "together"))

# %%
config = session.config(so_weight=0.0)
# drawn or fetched once
image_sets.prepare(
    config.dataset, config.root, progress=not session.quick
)
pa = session.fit(config)

# %%
proxies = {"before training": pa.proxies(0), "PA": pa.proxies()}  # (C, D) each
shapes = {name: geometry.describe(p) for name, p in proxies.items()}
crowding = pd.DataFrame(
    {
        name: {
            "RMS cosine": shape.rms_cosine,
            "× chance": shape.rms_cosine / shape.chance_cosine,
            "mean cosine": shape.mean_cosine,
            "spread about the mean": math.sqrt(
                shape.rms_cosine**2 - shape.mean_cosine**2
            ),
            "coherence": shape.coherence,
        }
        for name, shape in shapes.items()
    }
).T
ratio = crowding.loc["PA", "RMS cosine"] / crowding["RMS cosine"].iloc[0]
reveal(
    "05.b",
    figures.angle_histogram(proxies),
    crowding.round(3),
    truth="together"
    if ratio > 1.1
    else "apart"
    if ratio < 1 / 1.1
    else "as they were",
)

# %% [markdown]
# **What we see.** At the start the histogram follows the curve of random directions. That is not a virtue of the start values. Training moves the whole histogram away from 90°, to one side. *Correlation is made by training.* It has two parts, and the table separates them: a mean, the direction that all proxies share (the common mode of notebook 04), and a spread about it, pairs that are closer or further apart than others (06 asks which). The squares of the two add up to the square of the RMS cosine.
#
# Is crowding bad? Not obviously. Two proxies may be close because their species look alike, and then the closeness is knowledge. The paper that this course is named after says in its abstract that proxies may become highly correlated, and penalizes that. We first build the penalty, then ask.

# %% [markdown] tags=["slide"]
# ## 2 · The penalty
#
# Orthogonal unit vectors have $\hat P\hat P^\top = I$, the $C\times C$ identity. Soft orthogonality measures how far from it we are, as a squared Frobenius norm:
#
# $$
# \text{SO}_{\text{sum}}(P) = \lVert \hat P\hat P^\top - I \rVert_F^2 = \sum_{i\ne j}\cos^2\theta_{ij} .
# $$
#
# The diagonal of $\hat P\hat P^\top$ is 1 because rows have unit length, so only cosines of *different* proxies are left. "Soft", because it is one more term in the loss and not a constraint:
#
# $$
# L = L_{\text{PA}} + \lambda\,L_{\text{SO}} .
# $$
#
# Two versions occur in the literature and in this notebook: $\text{SO}_{\text{sum}}$, the sum over pairs, which is the one to differentiate and to bound (sections 2, 3, 5 and 6), and $L_{\text{SO}} = \text{SO}_{\text{sum}}/(C(C-1))$, the mean over pairs. Everywhere else in this course "SO" and its $\lambda$ mean the *mean*; section 4 says why.

# %%
# three proxies in the plane: at 0°, 45° and 90°
P = torch.tensor(
    [[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]
)
P_hat = F.normalize(P, dim=1)  # (C, D)
gram = P_hat @ P_hat.T  # (C, C): cosines
print(gram.numpy().round(3))
cmp(
    "‖P̂P̂ᵀ − I‖² against sobook.losses",
    (gram - torch.eye(3)).square().sum(),
    soft_orthogonality(P, reduction="sum"),
)

# %% [markdown] tags=["slide"]
# ### Three proxies on a circle
#
# In the plane only two directions can be orthogonal. **Predict:** where does SO send three proxies? Hold the first at 0° and let the other two roll downhill. Is the best arrangement unique?


# %% tags=["slide", "hide-input"]
def at_angles(*degrees):
    radians = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)  # (C, 2)


grid = torch.linspace(0, 180, 91, dtype=torch.float64)
landscape = np.array(
    [
        [soft_orthogonality(at_angles(0, a, b), reduction="sum") for a in grid]
        for b in grid
    ]
)

# of the second and third proxy
angles = torch.tensor(
    [20.0, 35.0], dtype=torch.float64, requires_grad=True
)
path = [angles.tolist()]
for _ in range(150):
    (slope,) = torch.autograd.grad(
        soft_orthogonality(
            torch.cat(
                [
                    at_angles(0),
                    torch.stack(
                        [angles.deg2rad().cos(), angles.deg2rad().sin()], 1
                    ),
                ]
            ),
            reduction="sum",
        ),
        angles,
    )
    angles = (angles - 80 * slope).detach().requires_grad_()
    path.append(angles.tolist())
path = np.array(path)  # (steps, 2)


def draw_circle(axis, degrees, title):
    axis.add_patch(Circle((0, 0), 1, fill=False, ec="#C4C4C4"))
    for number, (x, y) in enumerate(at_angles(*degrees).tolist()):
        axis.annotate(
            "",
            (x, y),
            (0, 0),
            arrowprops={"arrowstyle": "-|>", "lw": 2.4, "color": "#222222"},
        )
        axis.text(
            1.16 * x, 1.16 * y, f"p{number + 1}", ha="center", va="center"
        )
    value = soft_orthogonality(at_angles(*degrees), reduction="sum")
    axis.set(
        xlim=(-1.3, 1.3),
        ylim=(-1.3, 1.3),
        aspect="equal",
        title=f"{title}: SO = {value:.2f}",
    )
    axis.set_axis_off()


figure = figures.new_figure(12, 3.6)
axes = figure.subplots(1, 4, width_ratios=(1.3, 1, 1, 1))
filled = axes[0].contourf(grid, grid, landscape, levels=20, cmap="viridis")
axes[0].plot(*path.T, color="white", lw=2.4)
axes[0].plot(*path[0], "o", color="white", ms=8)
axes[0].plot(*path[-1], "*", color="white", ms=15)
axes[0].set(
    xlabel="angle of p2",
    ylabel="angle of p3",
    xlim=(0, 180),
    ylim=(0, 180),
    xticks=[0, 60, 120, 180],
    yticks=[0, 60, 120, 180],
    title="SO, p1 at 0°",
)
figure.colorbar(filled, ax=axes[0])
draw_circle(axes[1], (0, *path[0]), "start")
draw_circle(axes[2], (0, *path[-1]), "end")
draw_circle(axes[3], (0, path[-1][0] + 180, path[-1][1]), "p2 turned")
figures.finish(
    figure,
    "SO of three proxies in the plane over two angles, with a descent from "
    f"{path[0].round()} to {path[-1].round()} degrees; turning one proxy "
    "round does not change SO.",
)

# %% [markdown]
# **What we see.** The proxies spread until they stand 60° apart, like a fan. Turn one of them round and the value stays the same: **SO sees lines, not arrows**, because $\cos^2$ does not notice the sign. A fan of 60° and a star of 120° are equally good for it. And the value at the bottom is not zero. How low it can get is the question of section 6.

# %% [markdown] tags=["slide"]
# ## 3 · Its gradient
#
# Let $G = \hat P\hat P^\top$. With the inner product $\langle A, B\rangle = \text{tr}(A^\top B)$ and $G$ symmetric,
#
# $$
# d\,\lVert G-I\rVert_F^2 = 2\,\langle G-I,\; dG\rangle = 2\,\langle G-I,\; d\hat P\,\hat P^\top + \hat P\,d\hat P^\top\rangle = 4\,\langle (G-I)\hat P,\; d\hat P\rangle ,
# $$
#
# so the gradient with respect to $\hat P$ is $4(\hat P\hat P^\top - I)\hat P$. But $\hat P$ has rows of unit length and cannot move freely: $d\hat p_i = (I - \hat p_i\hat p_i^\top)\,dp_i/\lVert p_i\rVert$. So the part along $\hat p_i$ is removed, row by row, and what is left is divided by the length:
#
# $$
# \frac{\partial\,\text{SO}_{\text{sum}}}{\partial p_i} = \frac{1}{\lVert p_i\rVert}\,(I-\hat p_i\hat p_i^\top)\,g_i, \qquad g_i = 4\sum_{j\ne i}\cos\theta_{ij}\,\hat p_j .
# $$


# %%
def so_gradient(P):
    """∂ SO / ∂P by hand, for the sum; (C, D) → (C, D)."""
    lengths = P.norm(dim=1, keepdim=True)  # (C, 1)
    unit = P / lengths
    # (C, D): as if rows could move freely
    free = (
        4 * (unit @ unit.T - torch.eye(len(P), dtype=P.dtype)) @ unit
    )
    # the part at right angles to each row
    tangent = (
        free - (free * unit).sum(1, keepdim=True) * unit
    )
    return tangent / lengths


for C, D in ((3, 2), (40, 128), (200, 16)):
    P = torch.randn(
        C, D, generator=generator, dtype=torch.float64, requires_grad=True
    )
    (automatic,) = torch.autograd.grad(
        soft_orthogonality(P, reduction="sum"), P
    )
    cmp(
        f"gradient by hand against autograd, C = {C}, D = {D}",
        so_gradient(P),
        automatic,
    )

# %% [markdown]
# **Read the formula.** A step against the gradient pushes $\hat p_i$ away from every $\hat p_j$ with a positive cosine and *towards* every one with a negative cosine, in proportion to the cosine. Two comparisons with Proxy Anchor:
#
# - Its weights were a softmax: a few hard examples got nearly all. SO's weights are *linear*: many small cosines count as much together as one large one. It is not a term against the worst pair.
# - It looks at proxies only. No image has a say, so it cannot know whether two proxies are close for a reason.

# %% [markdown] tags=["slide"]
# ## 4 · Why rows are normalized and pairs averaged
#
# One could penalize $\lVert PP^\top - I\rVert_F^2$ without normalizing. **Predict:** proxies start with coordinates of variance $2/C$ (Proxy Anchor's official start values). How long are the rows then, on CUB and on SOP, and what would the term without hats mostly be about?

# %% tags=["slide"]
D = 384  # the width of DeiT-Small's features
rows = []
for name, card in benchmarks.cards().items():
    C = card["splits"]["train"]["classes"]
    P = torch.randn(C, D, generator=generator) * math.sqrt(2 / C)
    # the smaller Gram matrix; its squares have the same sum (section 5)
    small = (
        P.T @ P if C > D else P @ P.T
    )
    squared_lengths = P.square().sum(1)
    diagonal = (squared_lengths - 1).square().sum()
    off_diagonal = small.square().sum() - squared_lengths.square().sum()
    total, mean = (
        soft_orthogonality(P, reduction=r).item() for r in ("sum", "mean")
    )
    rows.append(
        [
            name,
            C,
            P.norm(dim=1).mean().item(),
            (diagonal / (diagonal + off_diagonal)).item(),
            total,
            mean,
        ]
    )
columns = [
    "data set",
    "C",
    "length of a row",
    "without hats: share of the lengths",
    "SO, sum",
    "SO, mean",
]
table = pd.DataFrame(rows, columns=columns).set_index("data set")
table.apply(
    lambda column: column.map(
        {"C": "{:,.0f}", "SO, sum": "{:,.0f}", "SO, mean": "{:.5f}"}.get(
            column.name, "{:.2f}"
        ).format
    )
)

# %%
ratio = table["SO, sum"].max() / table["SO, sum"].min()
print(
    f"the sum differs by a factor of {ratio:,.0f} between data sets, for "
    "proxies that are all equally random"
)
print(
    "the mean differs by a factor of "
    f"{table['SO, mean'].max() / table['SO, mean'].min():.2f}; 1/D is "
    f"{1 / D:.5f}"
)

# %% [markdown]
# **What we see.**
#
# - Without hats most of the term is about *lengths*: it pulls every row to length 1. But the *value* of Proxy Anchor does not depend on lengths, so that is effort spent on something no cosine uses. With hats, only angles count. (Lengths are not without effect, though: the gradient of section 3 has a factor $1/\lVert p_i\rVert$, and so has Proxy Anchor's. The longer a proxy, the smaller the angle that one step turns it by: a length is a step size.)
# - The *sum* of equally random proxies differs by four orders of magnitude, because it has $C(C-1)$ terms. A $\lambda$ tuned on CUB would mean something else entirely on SOP. So the package divides:
#
# $$
# L_{\text{SO}} = \frac{1}{C(C-1)}\,\lVert\hat P\hat P^\top-I\rVert_F^2 ,
# $$
#
# the mean squared cosine of two different proxies; its root is the RMS cosine, and chance is $1/D$. These two choices are ours. What the paper does here, and its $\lambda$, we do not know.

# %% [markdown] tags=["slide"]
# ## 5 · Two Gram matrices
#
# SOP's $\hat P\hat P^\top$ has 11,318 rows and columns. Do we need it? **There is another Gram matrix, $\hat P^\top\hat P$, of size $D\times D$.** Expand the norm and use $\text{tr}(AB)=\text{tr}(BA)$:
#
# $$
# \begin{aligned}
# \lVert\hat P\hat P^\top - I_C\rVert_F^2 &= \text{tr}(\hat P\hat P^\top\hat P\hat P^\top) - 2\,\text{tr}(\hat P\hat P^\top) + C \\
# &= \text{tr}(\hat P^\top\hat P\,\hat P^\top\hat P) - 2\,\text{tr}(\hat P^\top\hat P) + C
# = \lVert\hat P^\top\hat P\rVert_F^2 - 2\,\lVert\hat P\rVert_F^2 + C .
# \end{aligned}
# $$
#
# Since rows have unit length, $\lVert\hat P\rVert_F^2 = C$, and $\text{SO}_{\text{sum}}$ is $\lVert\hat P^\top\hat P\rVert_F^2 - C$. **Predict:** at which $C$ does the second form become the faster one?


# %%
def by_classes(unit):
    """SO from the C × C Gram matrix."""
    return (
        (unit @ unit.T - torch.eye(len(unit), device=unit.device))
        .square()
        .sum()
    )


def by_dimensions(unit):
    """SO from the D × D Gram matrix."""
    return (unit.T @ unit).square().sum() - 2 * unit.square().sum() + len(unit)


for C in (40, 1000):
    unit = F.normalize(torch.randn(C, 128, generator=generator), dim=1)
    cmp(f"both forms, C = {C}, D = 128", by_classes(unit), by_dimensions(unit))


# %% tags=["slide", "hide-input"]
def milliseconds(form, C, D, repeats=5):
    """Fastest of a few times of value and gradient."""
    P = torch.randn(C, D, device=session.device, requires_grad=True)
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        P.grad = None
        form(F.normalize(P, dim=1)).backward()
        P.grad.sum().item()  # waits for a GPU
        taken.append(1000 * (time.perf_counter() - begin))
    return min(taken)


D = 384
CLASSES = [50, 100, 200, 400, 800, 1600, 3200]
times = {
    form.__name__: [milliseconds(form, C, D) for C in CLASSES]
    for form in (by_classes, by_dimensions)
}

figure = figures.new_figure(7.5, 4)
axis = figure.subplots()
axis.loglog(
    CLASSES,
    times["by_classes"],
    "o-",
    color="#882255",
    label="C × C Gram matrix",
)
axis.loglog(
    CLASSES,
    times["by_dimensions"],
    "s--",
    color="#332288",
    label="D × D Gram matrix",
)
axis.axvline(D, color=figures.COLORS["chance"], ls=":", lw=1.6)
axis.text(D * 1.05, axis.get_ylim()[1] * 0.6, f"C = D = {D}")
axis.set(xlabel="classes C", ylabel="value and gradient, milliseconds")
axis.legend(loc="upper left")
figures.finish(
    figure,
    f"Time of SO and its gradient by both Gram matrices; at C = {CLASSES[-1]} "
    f"{times['by_classes'][-1]:.0f} and {times['by_dimensions'][-1]:.1f} "
    "milliseconds.",
)

# %%
C = benchmarks.cards()["sop"]["splits"]["train"]["classes"]
print(
    f"at C = {CLASSES[-1]:,} the D × D form is "
    f"{times['by_classes'][-1] / times['by_dimensions'][-1]:.0f} times faster "
    "on this machine"
)
print(
    f"for SOP (C = {C:,}) one Gram matrix in float32 takes "
    f"{4 * C**2 / 2**20:,.0f} MiB, or {4 * D**2 / 2**20:.1f} MiB"
)

# %% [markdown]
# One form grows with $C^2D$, the other with $CD^2$; they meet where $C = D$. `soft_orthogonality` picks the smaller one by itself. The gradients agree as well, for the two forms are the same function.

# %% [markdown]
# ### Exercise 1 · SO from singular values
#
# Let $\sigma_1, \sigma_2, \dots$ be the singular values of $\hat P$. Write SO (the sum) in terms of them and $C$ alone. Two facts suffice: the eigenvalues of $\hat P^\top\hat P$ are the $\sigma_k^2$, and the squared Frobenius norm of a symmetric matrix is the sum of its squared eigenvalues.
#
# <details><summary>Hint</summary>
#
# $\lVert\hat P^\top\hat P\rVert_F^2=\sum_k(\sigma_k^2)^2$, and section 5 says what is to be subtracted.
#
# </details>


# %%
def so_from_spectrum(singular_values, num_classes):
    """‖P̂P̂ᵀ − I‖² from the singular values of P̂."""
    return float("nan")  # your code here


def compare_spectrum(function):
    for C, D in ((40, 128), (200, 16)):
        P = torch.randn(
            C, D, generator=torch.Generator().manual_seed(session.seed)
        ).double()
        expected = soft_orthogonality(P, reduction="sum").item()
        print(
            f"C = {C}, D = {D}: yours "
            f"{float(function(geometry.describe(P).spectrum, C)):.4f}, "
            f"expected {expected:.4f}"
        )


compare_spectrum(so_from_spectrum)
exercises.check("05.1", so_from_spectrum)


# %% tags=["solution"]
def so_from_spectrum(singular_values, num_classes):
    return (singular_values**4).sum() - num_classes


compare_spectrum(so_from_spectrum)
exercises.check("05.1", so_from_spectrum)

# %% [markdown] tags=["slide"]
# ## 6 · How low can it get?
#
# With $C\le D$ there is room for $C$ orthogonal directions, and SO can reach 0. With $C > D$ there is not. Exercise 1 gives the floor in two lines. There are at most $D$ singular values, and $\sum\sigma_k^2 = \lVert\hat P\rVert_F^2 = C$. By Cauchy–Schwarz,
#
# $$
# C^2 = \Big(\sum_{k=1}^{D}\sigma_k^2\Big)^2 \le D\sum_{k=1}^{D}\sigma_k^4
# \quad\Longrightarrow\quad
# \text{SO}_{\text{sum}} = \sum_k\sigma_k^4 - C \;\ge\; \frac{C^2}{D}-C ,
# $$
#
# with equality when all $\sigma_k$ are equal: proxies use every direction alike (a *tight frame*).
#
# From there it is one step to the worst pair. The largest squared cosine is at least the mean one, so for $C > D$ the coherence is at least
#
# $$
# \max_{i\ne j}\lvert\cos\theta_{ij}\rvert \;\ge\; \sqrt{\frac{C^2/D - C}{C(C-1)}} = \sqrt{\frac{C-D}{D(C-1)}} ,
# $$
#
# the *Welch bound*. When is orthogonality impossible, then? Exactly when $C > D$: the floor is positive, since $C$ orthogonal unit vectors would be linearly independent and $D$ dimensions hold only $D$ of those. And equality in the bound asks for two things at once, a tight frame *and* all $\lvert\cos\theta_{ij}\rvert$ equal. Such *equiangular* tight frames exist for few pairs $(C, D)$ only; exercise 2 builds the simplest. **Predict:** gradient descent on SO alone, in 16 dimensions: will it find the floor? And will the worst pair reach the Welch bound along the way?


# %%
def descend(C, D, steps=400):
    """Minimize SO alone; the RMS cosine after each step, and proxies."""
    start = torch.Generator().manual_seed(session.seed)
    P = nn.Parameter(torch.randn(C, D, generator=start))
    optimizer = torch.optim.Adam([P], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rms = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = soft_orthogonality(P)
        value.backward()
        optimizer.step()
        schedule.step()
        rms.append(math.sqrt(value.item()))
    return rms, P.detach()


D = 16
SIZES = [8, 16, 20, 24, 32, 48, 64]
paths, reached = {}, {}
for C in SIZES:
    paths[C], reached[C] = descend(C, D)
ends = {C: geometry.describe(P) for C, P in reached.items()}


# %% tags=["slide", "hide-input"]
def rms_floor(C, D):
    return math.sqrt(geometry.orthogonality_floor(C, D) / (C * (C - 1)))


figure = figures.new_figure(12, 4.2)
left, right = figure.subplots(1, 2)
for C, dash, shade in zip(
    (8, 16, 24, 64),
    ("-", (0, (5, 1.5)), "-.", (0, (1, 1))),
    ("#0072B2", "#009E73", "#E69F00", "#882255"),
    strict=True,
):
    left.plot(range(1, 401), paths[C], ls=dash, color=shade, label=f"C = {C}")
    left.axhline(rms_floor(C, D), color=shade, lw=1)
left.set(
    xscale="log",
    xlabel="step",
    ylabel="RMS cosine",
    ylim=(-0.01, None),
    title="descent (thin lines: the floors)",
)
left.legend()
sizes = np.arange(8, 65)
right.axhline(
    1 / math.sqrt(D),
    color=figures.COLORS["chance"],
    ls=":",
    lw=1.6,
    label="chance, 1/√D",
)
right.plot(
    sizes,
    [rms_floor(C, D) for C in sizes],
    color="#332288",
    lw=1.4,
    label="floor, and Welch bound",
)
right.plot(
    SIZES,
    [ends[C].rms_cosine for C in SIZES],
    "o",
    color="#332288",
    ms=9,
    label="RMS cosine reached",
)
right.plot(
    SIZES,
    [ends[C].coherence for C in SIZES],
    "^",
    color="#882255",
    ms=9,
    label="coherence reached",
)
right.axvline(D, color="#C4C4C4", lw=1)
right.set(
    xlabel="classes C",
    ylabel="cosine",
    ylim=(-0.02, None),
    title=f"after the descent, D = {D}",
)
right.legend(fontsize=10)
figures.finish(
    figure,
    "RMS cosine during descent on SO alone, and RMS cosine and coherence "
    "reached, by number of classes: "
    + "; ".join(
        f"C = {C}: {ends[C].rms_cosine:.2f}, {ends[C].coherence:.2f}"
        for C in SIZES
    )
    + ".",
)

# %%
pd.DataFrame(
    {
        C: {
            "SO reached": s.orthogonality,
            "floor": s.orthogonality_floor,
            "coherence reached": s.coherence,
            "Welch bound": s.welch_bound,
        }
        for C, s in ends.items()
    }
).T.rename_axis("C").round(3)

# %% [markdown]
# **What we see.** SO finds its floor every time. That is no luck: up to a constant $\text{SO}_{\text{sum}}$ is the *frame potential* of Benedetto and Fickus, who proved that it has no bad local minima: wherever descent comes to rest at a minimum, it is at the floor. The coherence does not come near the bound for $C > D$: the two bounds are the same number (in the right panel one line), but the first is about the *mean* square, the second about the *largest*. A tight frame can be had with some pairs quite close, and SO is content with it. So do not expect SO to separate the worst pair.
#
# As $C/D$ grows the floor rises towards chance. What is there to gain on the four benchmarks?

# %%
D = 384
rows = []
for name, card in benchmarks.cards().items():
    C = card["splits"]["train"]["classes"]
    rows.append(
        [
            name,
            C,
            1 / math.sqrt(D),
            rms_floor(C, D),
            geometry.welch_bound(C, D),
            1 - rms_floor(C, D) * math.sqrt(D),
        ]
    )
pd.DataFrame(
    rows,
    columns=[
        "data set",
        "C",
        "chance RMS cosine",
        "floor of the RMS cosine",
        "Welch bound",
        "below chance by at most",
    ],
).set_index("data set").round(4)

# %% [markdown]
# On CUB and Cars perfect orthogonality is possible. On SOP random proxies are almost as orthogonal as any set of that size can be: there SO can undo what training does, but it cannot do better than chance by more than the last column says.

# %% [markdown]
# ### Exercise 2 · Reach the Welch bound (open-ended)
#
# Descent on SO found tight frames, whose worst pair stays above the bound. For $C = D+1$ the bound *can* be reached, by the corners of a simplex: all pairs at the same angle. Construct them, as $D+1$ rows in $D$ dimensions. (For most other $C$ and $D$ the bound *cannot* be reached. $C = 6$, $D = 3$ is an exception: the diagonals of an icosahedron. Try to get near it for $C = 7$, $D = 3$, by descent on a higher power of the cosines.)
#
# <details><summary>Hint</summary>
#
# In $D+1$ dimensions it is easy: the rows of the identity, moved so that their mean is 0. They lie in a subspace of $D$ dimensions; the singular value decomposition finds coordinates in it.
#
# </details>


# %%
def simplex(dim):
    """Corners of a simplex around the origin; (D + 1, D)."""
    return np.eye(dim + 1)[:, :dim] + 1e-3  # your code here


for dim in (2, 3, 16):
    corners = geometry.describe(simplex(dim))
    print(
        f"D = {dim:>2}: largest |cosine| {corners.coherence:.4f}, Welch bound "
        f"{corners.welch_bound:.4f}, SO {corners.orthogonality:.4f}, floor "
        f"{corners.orthogonality_floor:.4f}"
    )
exercises.check("05.2", simplex)


# %% tags=["solution"]
def simplex(dim):
    corners = np.eye(dim + 1) - 1 / (dim + 1)  # (D + 1, D + 1), rows sum to 0
    U, S, _ = np.linalg.svd(corners)
    return U[:, :dim] * S[:dim]  # the last singular value is 0


for dim in (2, 3, 16):
    corners = geometry.describe(simplex(dim))
    print(
        f"D = {dim:>2}: largest |cosine| {corners.coherence:.4f}, Welch bound "
        f"{corners.welch_bound:.4f}, SO {corners.orthogonality:.4f}, floor "
        f"{corners.orthogonality_floor:.4f}"
    )
exercises.check("05.2", simplex)

# %% [markdown] tags=["slide"]
# ## 7 · Do the two terms want the same?
#
# Notebook 04 ended its sphere with seven classes whose proxies had merged, for want of a term between them. Here is the term. **Predict:** with SO, will the seven classes come apart? In three dimensions, and in sixteen?


# %% tags=["slide"]
def train_toy(dim, so_weight, classes=7, steps=300):
    """The toy of notebook 04, with SO.

    PA loss, largest cosine of two proxies, share of points nearest to their
    own proxy.
    """
    torch.manual_seed(session.seed)
    toy = torch.Generator().manual_seed(session.seed)
    centers = 1.5 * torch.randn(classes, 16, generator=toy)
    labels = torch.arange(classes).repeat_interleave(40)
    points = centers[labels] + torch.randn(len(labels), 16, generator=toy)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, dim))
    loss = SoftOrthogonalProxyAnchor(classes, dim, so_weight=so_weight)
    optimizer = torch.optim.AdamW(
        [
            {"params": network.parameters(), "lr": 2e-3},
            {"params": [loss.proxies], "lr": 0.1},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        parts = loss.parts(network(points), labels)
        parts["loss"].backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        nearest = (
            F.normalize(network(points), dim=1)
            @ F.normalize(loss.proxies, dim=1).T
        ).argmax(1)
    largest = geometry.off_diagonal(
        geometry.describe(loss.proxies).cosines
    ).max()
    return (
        parts["proxy_anchor"].item(),
        largest,
        (nearest == labels).float().mean().item(),
    )


rows = [
    [dim, weight, *train_toy(dim, weight)]
    for dim in (3, 16)
    for weight in (0, 10, 100)
]
pd.DataFrame(
    rows,
    columns=[
        "D",
        "λ",
        "PA loss",
        "largest cosine of two proxies",
        "points nearest to their own",
    ],
).round(2)

# %% [markdown]
# **What we see.** In three dimensions SO does loosen the knot of proxies, but the loss of Proxy Anchor *rises*, and hardly more points, or even fewer, are nearest to their own proxy. In sixteen there is room for both, and neither costs the other much. The reason is in the targets: Proxy Anchor wants images at *obtuse* angles to foreign proxies, the more the better; SO wants proxies at exactly 90°, and for it 120° is as bad as 60°. Where dimensions are scarce the two compete.

# %% [markdown]
# ### Exercise 3 · A one-sided penalty
#
# If obtuse angles are welcome, why punish them? Write a penalty that counts only *positive* cosines: the mean of $\max(0, \cos\theta_{ij})^2$ over pairs of different proxies. The cell minimizes it for four proxies in three dimensions, where SO has a positive floor. How low does yours get, and what do the angles look like?
#
# <details><summary>Hint</summary>
#
# `(unit @ unit.T).clamp_min(0)` has the positive cosines and, on its diagonal, C ones that are no pairs.
#
# </details>


# %%
def one_sided(P):
    """Mean squared positive cosine of two proxies; (C, D) → a scalar."""
    return soft_orthogonality(P)  # your code here; this is the two-sided one


def compare_one_sided(function, C=4, D=3, steps=400):
    P = nn.Parameter(
        torch.randn(C, D, generator=torch.Generator().manual_seed(session.seed))
    )
    optimizer = torch.optim.Adam([P], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        value = function(P)
        value.backward()
        optimizer.step()
    shape = geometry.describe(P)
    cosines = geometry.off_diagonal(shape.cosines)
    print(
        f"penalty {value.item():.4f} (one-sided: 0.0000 expected; two-sided "
        f"floor {rms_floor(C, D) ** 2:.4f})"
    )
    print(
        f"cosines between {cosines.min():+.3f} and {cosines.max():+.3f} "
        f"(one-sided: none above 0.00), RMS {shape.rms_cosine:.3f}"
    )


compare_one_sided(one_sided)
exercises.check("05.3", one_sided)


# %% tags=["solution"]
def one_sided(P):
    unit = F.normalize(P, dim=1)
    positive = (unit @ unit.T).clamp_min(0)
    count = len(P)
    return (positive.square().sum() - positive.diagonal().square().sum()) / (
        count * (count - 1)
    )


compare_one_sided(one_sided)
exercises.check("05.3", one_sided)

# %% [markdown]
# This is not the paper's term, only a question worth asking of it. Nothing here says that it would retrieve better.

# %% [markdown] tags=["slide"]
# ## 8 · PA beside PA+SO
#
# Now the two runs of this course. They share data, start values, crops, batches and every setting but one, $\lambda$. **Predict.** What will SO do to the Proxy Anchor loss, to the RMS cosine, and to Recall@1 on held-out classes? Draw the three curves on paper, and write down one number: the RMS cosine of the proxies with SO, as a fraction of that without.

# %%
predict("05.c", None)

# %%
pa_so = session.fit(session.config(so_weight=SO_WEIGHT))
runs = {"PA": pa, "PA+SO": pa_so}
print("settings that differ:", pa.config.differences(pa_so.config))

# %% tags=["slide"]
proxies |= {"PA+SO": pa_so.proxies()}
shapes = {name: geometry.describe(p) for name, p in proxies.items()}
table = pd.DataFrame(
    {name: shape.summary() for name, shape in shapes.items()}
).T
measures = ["rms_cosine", "mean_cosine", "coherence", "mean_angle"]
last = {name: run.epochs[-1]["proxy_anchor"] for name, run in runs.items()}
reveal(
    "05.c",
    figures.training_curves(
        {name: run.metrics for name, run in runs.items()}, dim=config.dim
    ),
    table[[*measures, "effective_rank", "orthogonality"]].round(3),
    f"Proxy Anchor loss in the last epoch: {last['PA']:.2f} with PA, "
    f"{last['PA+SO']:.2f} with PA+SO. RMS cosine of random directions: "
    f"{shapes['PA'].chance_cosine:.3f}.",
    truth=shapes["PA+SO"].rms_cosine / shapes["PA"].rms_cosine,
)

# %% [markdown]
# SO does to the proxies what it was made for; compare their RMS cosine with that of random directions, too.
#
# That was geometry. Retrieval is another matter: test species *have* no proxies, and the question is whether images of a new species come closer together.

# %%
test = image_sets.load(config.dataset, "test", config.root, **config.options)
frozen_encoder = Encoder.create(config.encoder, weights=config.weights).to(
    session.device
)
encoders = {"frozen": frozen_encoder} | {
    name: run.encoder().to(session.device) for name, run in runs.items()
}
results = {
    name: evaluate(embed(encoder, test, progress=False), test.labels)
    for name, encoder in encoders.items()
}
figures.interval_plot(
    [
        (name, result.recall[1], *result.interval(1), name)
        for name, result in results.items()
    ],
    "Recall@1 on test species",
)

# %%
compared = {
    k: compare_classes(results["PA"], results["PA+SO"], k) for k in (1, 4)
}
for k, found in compared.items():
    print(
        f"Recall@{k}, PA+SO compared with PA: "
        f"{verdict(found, list(compared.values()))}. {found}"
    )
print(
    f"MAP@R: {results['PA'].map_at_r:.3f} with PA, "
    f"{results['PA+SO'].map_at_r:.3f} with PA+SO"
)

# %% [markdown]
# Two warnings before anyone quotes these lines. The interval tells how the difference would vary with other *species*; it knows nothing about the luck of *one* training run. Another seed may give another sign; notebook 08 repeats the pair over several. And "no difference shown" is not "no difference": it says that a difference, if there is one, lies within the interval.
#
# ### By hand
#
# A piece of the [lab](https://sobook.github.io/sobook/lab.html): heads on frozen features, trained in this page, without a kernel. **Predict** how much crowding is left at λ = 100, and press *Train*: it trains without SO first, then with it. Train again and pull λ while it trains: which of the three views answers at once, and which hardly at all?

# %%
lab.piece("remedy")

# %% [markdown] tags=["slide"]
# ## 9 · How much λ?
#
# A whole training for each $\lambda$ would take long. But the frozen features are on disk, and a linear head with proxies on top of them trains in seconds. It is a model of the real thing, not the real thing: the backbone cannot answer. **Predict:** over four orders of magnitude of $\lambda$, how does Recall@1 on held-out classes change? Write down the difference between $\lambda = 1000$ and $\lambda = 0$ (.01 is one point).

# %%
predict("05.d", None)

# %%
everything = image_sets.load(
    config.dataset, "train", config.root, **config.options
)
training, held_out = image_sets.hold_out(
    everything, config.validation_fraction, seed=config.seed
)
# (N, F)
features, held_out_features = (
    torch.from_numpy(embed(frozen_encoder, s, progress=False))
    for s in (training, held_out)
)
labels = torch.from_numpy(training.labels)


def train_head(so_weight, seed, epochs=25, batch=100, dim=config.dim):
    """Head and proxies on frozen features; evaluated on held-out classes."""
    torch.manual_seed(seed)
    width = features.shape[1]
    head = nn.Sequential(
        nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, dim)
    )
    nn.init.orthogonal_(head[1].weight)
    loss = SoftOrthogonalProxyAnchor(
        training.num_classes, dim, so_weight=so_weight
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": head.parameters(), "lr": 5e-3},
            {"params": [loss.proxies], "lr": 0.1},
        ]
    )
    steps = len(features) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, epochs * steps
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(features))[: steps * batch].view(
            steps, batch
        ):
            optimizer.zero_grad()
            loss(head(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (
            head,
            loss,
            evaluate(head(held_out_features), held_out.labels, ks=(1,)),
        )


LAMBDAS, SEEDS = (0, 1, 10, 100, 1000), range(3)
study = {
    (weight, seed): train_head(weight, seed)
    for weight in LAMBDAS
    for seed in SEEDS
}

# %% tags=["slide", "hide-input"]
# (S, λ)
rms = np.array(
    [
        [geometry.describe(study[w, s][1].proxies).rms_cosine for w in LAMBDAS]
        for s in SEEDS
    ]
)
# (S, λ)
found = np.array(
    [[study[w, s][2].recall[1] for w in LAMBDAS] for s in SEEDS]
)
family = [
    compare_seeds(found[:, 0], found[:, i]) for i in range(1, len(LAMBDAS))
]
# (λ, 3)
recall = np.array(
    [(column.mean(), *t_interval(column)) for column in found.T]
)
# (λ, 3), paired by seed
changes = np.array(
    [(0, 0, 0)] + [(c.difference, c.low, c.high) for c in family]
)

figure = figures.new_figure(12.5, 4)
axes = figure.subplots(1, 3)
places = np.arange(len(LAMBDAS))
for seed in SEEDS:
    axes[0].plot(places, rms[seed], "o", color=figures.COLORS["PA+SO"], ms=6)
axes[0].axhline(
    1 / math.sqrt(config.dim), color=figures.COLORS["chance"], ls=":", lw=1.6
)
axes[0].set(
    yscale="log", title="RMS cosine of the proxies\n(dotted: random directions)"
)
frozen = evaluate(held_out_features, held_out.labels, ks=(1,)).recall[1]
axes[1].axhline(frozen, color=figures.COLORS["frozen"], ls=":", lw=1.6)
axes[1].set(title="Recall@1, held-out classes\n(dotted: frozen features)")
axes[2].axhline(0, color=figures.COLORS["chance"], ls=":", lw=1.6)
axes[2].set(
    title="change of Recall@1 from λ = 0\n(the same classes and seeds)"
)
for axis, values in ((axes[1], recall), (axes[2], changes)):
    shown = slice(0, None) if axis is axes[1] else slice(1, None)
    axis.vlines(
        places[shown],
        *values[shown, 1:].T,
        color=figures.COLORS["PA+SO"],
        lw=2.4,
    )
    axis.plot(
        places[shown],
        values[shown, 0],
        "s",
        color=figures.COLORS["PA+SO"],
        ms=8,
    )
for axis in axes:
    axis.set(xlabel="λ", xlim=(-0.5, places[-1] + 0.5))
    axis.set_xticks(places, [f"{w:g}" for w in LAMBDAS])
figures.finish(
    figure,
    "RMS cosine and Recall@1 for five weights of SO on frozen features: "
    + "; ".join(
        f"λ = {w}: {r:.3f}, {v[0]:.3f}"
        for w, r, v in zip(LAMBDAS, rms.mean(0), recall, strict=True)
    )
    + ".",
)
verdicts = pd.DataFrame(
    {
        f"λ = {weight}": {
            "RMS cosine, × that of λ = 0": f"{cosine / rms.mean(0)[0]:.3f}",
            "Recall@1": verdict(change, family),
            "difference": f"{change.difference:+.4f} "
            f"[{change.low:+.4f}, {change.high:+.4f}]",
        }
        for weight, cosine, change in zip(
            LAMBDAS[1:], rms.mean(0)[1:], family, strict=True
        )
    }
).T
reveal("05.d", figure, verdicts, truth=family[-1].difference)

# %% [markdown]
# **What we see.** The proxies obey $\lambda$ over the whole range: their RMS cosine falls far below chance. Recall@1 may follow, or not: in the committed run no difference is shown. The verdicts in the table are corrected for the four comparisons (Holm), since four weights are four chances of a find. Three seeds give wide intervals, and 25 epochs are few. Notebook 09 asks again, with ten seeds and with up to 240 epochs.
#
# Why did it take a $\lambda$ of such a size to do anything? Compare the two gradients that a proxy feels:

# %%
head, loss, _ = study[0, 0]  # trained without SO
rows = torch.randperm(len(features), generator=generator)[: config.batch_size]
(pa_gradient,) = torch.autograd.grad(
    ProxyAnchor.forward(loss, head(features[rows]).detach(), labels[rows]),
    loss.proxies,
)
(so_gradient_mean,) = torch.autograd.grad(
    soft_orthogonality(loss.proxies), loss.proxies
)
balance = (pa_gradient.norm() / so_gradient_mean.norm()).item()
print(
    f"gradient of the proxies: PA {pa_gradient.norm():.2f}, SO (mean) at λ = "
    f"1 {so_gradient_mean.norm():.4f}; as long as each other at λ = "
    f"{balance:.0f}; our default is {SO_WEIGHT:g}"
)

# %% [markdown]
# A mean over all pairs is a small number with a small gradient: hence a default far above one. It was chosen by us, for this reduction. For a real choice, do what this section does with whole training runs: on held-out *training* classes, over several seeds, and with the test classes kept out of it.
#
# ## 10 · With a library
#
# You will hardly move your own training into this package, and you need not. If you train with [pytorch-metric-learning](https://github.com/KevinMusgrave/pytorch-metric-learning), Proxy Anchor is there. The term is ten lines:


# %%
def orthogonality(proxies):
    """Mean squared cosine of two different proxies: (C, D) → a scalar."""
    unit = F.normalize(proxies.float(), dim=1)
    classes, dim = unit.shape
    small = unit @ unit.T if classes <= dim else unit.T @ unit
    # On the diagonal of the C × C matrix are C ones; its squares have the
    # same sum in either form (section 5).
    return (small.square().sum() - classes) / (classes * (classes - 1))


# %% [markdown]
# Add it to the loss; that is all. (The library can also add it for you, through `weight_regularizer`, but the interface of that differs between its versions 2 and 3, and a plus sign does not.)


# %%
class LibraryLoss(nn.Module):
    """Proxy Anchor of pytorch-metric-learning, and λ times our term."""

    def __init__(self, classes, dim, so_weight):
        super().__init__()
        self.loss = ProxyAnchorLoss(classes, dim, margin=0.1, alpha=32)
        self.so_weight = so_weight

    @property
    def proxies(self):
        (only,) = self.loss.parameters()  # (C, D)
        return only

    def forward(self, embeddings, labels):
        penalty = orthogonality(self.proxies)
        return self.loss(embeddings, labels) + self.so_weight * penalty


# %% [markdown]
# Is it the loss of this course? Value and gradients, with fewer classes than dimensions and with more:

# %%
for C, D in ((40, 128), (200, 16)):
    x = torch.randn(90, D, generator=generator, requires_grad=True)
    y = torch.randint(C, (90,), generator=generator)
    theirs = LibraryLoss(C, D, SO_WEIGHT)
    ours = SoftOrthogonalProxyAnchor(C, D, so_weight=SO_WEIGHT)
    ours.proxies.data = theirs.proxies.data.clone()
    values, gradients = [], []
    for module in (theirs, ours):
        values.append(module(x, y))
        inputs = (x, module.proxies)
        gradients.append(torch.autograd.grad(values[-1], inputs))
    cmp(f"C = {C}, D = {D}: value", *values)
    names = ("gradient of embeddings", "gradient of proxies")
    for name, a, b in zip(names, *gradients, strict=True):
        cmp(f"C = {C}, D = {D}: {name}", a, b)

# %% [markdown]
# The same value and the same gradients, so the same training. Copy the ten lines into your own code, hand the library's proxies to the optimizer with a learning rate of their own (they belong to the *loss*), and look at the RMS cosine of your proxies before and after.
#
# ### Exercise 4 · Find the bug
#
# A colleague adds the ten lines to a classifier that keeps its class vectors as *columns*: 40 classes in 128 dimensions are a matrix of shape (128, 40). (The library's ArcFace does so in version 2.) There is room for 40 orthogonal directions. The term is minimized alone, and yet the class vectors end no more orthogonal than random ones:

# %%
def descend_on(penalty, weight, steps=100):
    weight = nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        value = penalty(weight, 40)
        value.backward()
        optimizer.step()
    return value.item(), geometry.describe(weight.T).rms_cosine


def as_it_is(weight, num_classes):
    return orthogonality(weight)


common = torch.randn(128, 1, generator=generator)
columns = torch.randn(128, 40, generator=generator) + common  # correlated
before = geometry.describe(columns.T).rms_cosine
value, after = descend_on(as_it_is, columns)
print(f"penalty {value:.4f}; RMS cosine {before:.3f} before, {after:.3f} after")
print(f"chance, 1/√D: {1 / math.sqrt(128):.3f}")

# %% [markdown]
# What was pushed apart instead, and why did it help at all? (Section 5 knows.) Write a penalty that is right for class vectors in rows *and* in columns; it is told how many classes there are.
#
# <details><summary>Hint</summary>
#
# Which dimension of the matrix is as long as there are classes?
#
# </details>

# %%
def penalty_of_classes(weight, num_classes):
    """Mean squared cosine of class vectors; (C, D) or (D, C) → a scalar."""
    return orthogonality(weight)  # your code here


value, after = descend_on(penalty_of_classes, columns)
print(f"penalty {value:.4f}; RMS cosine {before:.3f} before, {after:.3f} after")
exercises.check("05.4", penalty_of_classes)

# %% tags=["solution"]
def penalty_of_classes(weight, num_classes):
    rows = weight if len(weight) == num_classes else weight.T
    return orthogonality(rows)


value, after = descend_on(penalty_of_classes, columns)
print(f"penalty {value:.4f}; RMS cosine {before:.3f} before, {after:.3f} after")
exercises.check("05.4", penalty_of_classes)

# %% [markdown]
# <details><summary>Why did it help at all?</summary>
#
# Rows of the matrix are dimensions here, 128 of them in 40 classes, and those were pushed towards a tight frame. By section 5 the two Gram matrices of a matrix have the same Frobenius norm, so this evens out the spectrum for the class vectors as well. But it is the wrong rows that were scaled to unit length, and 128 directions in 40 dimensions have a positive floor: the penalty printed above. A bug that nearly works is the kind that stays.
#
# </details>
#
# ## Summary
#
# - Random directions have an RMS cosine of $1/\sqrt D$: near-orthogonality at the start is chance, and correlation is made by training.
# - $\text{SO}_{\text{sum}} = \lVert\hat P\hat P^\top - I\rVert_F^2$ is the sum of squared cosines. Normalize rows, or it is about lengths; average over pairs, or $\lambda$ means something else on every data set.
# - Its gradient is $4(\hat P\hat P^\top-I)\hat P$, projected to the tangents of the sphere: linear in the cosines, blind to images. $\lVert\hat P^\top\hat P\rVert_F^2 - C$ is the same number and cheap for many classes.
# - For $C > D$ the floor is $C^2/D - C$. SO reaches it; the worst pair stays above the Welch bound.
# - SO makes proxies orthogonal, reliably. Whether that helps retrieval is a separate question; the cells of sections 8 and 9 print what was found here, and notebook 08 asks it over several seeds.
#
# **Still open.** Training gave the proxies a common direction *and* pairs that are closer or further apart than others; SO acts on both alike. Which of the two is most of it, which pairs are the close ones, and what do the images do meanwhile? [06 · Proxy geometry](06_proxy_geometry.ipynb) takes them apart.
#
# ## Questions
#
# **1.** Somebody reports that their proxies after training with SO have an RMS cosine of 0.05 in 512 dimensions, and concludes that SO works. What do you ask?
#
# <details><summary>Answer</summary>
#
# What it was before training, and what it is after training without SO. Chance is $1/\sqrt{512}\approx 0.044$: random proxies would do slightly better. Only the comparison with the run without SO says what SO did. And whether retrieval changed is yet another question.
#
# </details>
#
# **2.** Can SO be zero for 11,318 classes in 512 dimensions? In 11,318 dimensions? Would you buy the dimensions?
#
# <details><summary>Answer</summary>
#
# No: the floor $C^2/D - C$ is positive for $C > D$. In 11,318 dimensions yes. But every embedding, index and search would grow by the same factor, while the RMS cosine in 512 dimensions is at most about $1/\sqrt{512}$ for proxies that are merely random; there is little to buy.
#
# </details>
#
# **3.** You train with SO as a *sum* on CUB (100 classes) and find a good $\lambda$. What would you use on Cars (98 classes), on SOP (11,318)? What if SO is the mean?
#
# <details><summary>Answer</summary>
#
# A sum over $C(C-1)$ pairs corresponds to a mean with $\lambda_{\text{mean}} = \lambda_{\text{sum}}\,C(C-1)$. For Cars that hardly differs; for SOP the sum has some thirteen thousand times as many terms, so the same $\lambda_{\text{sum}}$ would be far stronger. With the mean, the same $\lambda$ at least weighs the same *typical squared cosine*. It need not be the best one there: the gradient that a single proxy feels from a mean falls with $C$.
#
# </details>
#
# ## Further reading
#
# - F. Saberi-Movahed et al., [Deep Metric Learning with Soft Orthogonal Proxies](https://arxiv.org/abs/2306.13055), 2023: the idea of this notebook, Proxy Anchor with soft orthogonality on a DeiT encoder. We know its abstract, not its settings or results; normalization, averaging and $\lambda$ here are ours.
# - N. Bansal, X. Chen, Z. Wang, [Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?](https://arxiv.org/abs/1810.09102), NeurIPS 2018: where "soft orthogonality" comes from, on the weights of networks, with stricter relatives that act on the largest cosine or singular value.
# - J. Benedetto, M. Fickus, Finite normalized tight frames, Advances in Computational Mathematics 18, 2003: the frame potential; every local minimum is a global one.
# - M. Sustik, J. Tropp, I. Dhillon, R. Heath, On the existence of equiangular tight frames, Linear Algebra and its Applications 426, 2007: which pairs $(C, D)$ are impossible.
# - L. Welch, Lower bounds on the maximum cross correlation of signals, IEEE Transactions on Information Theory, 1974: the bound of section 6, in its first home, radio.
# - K. Musgrave, S. Belongie, S.-N. Lim, [A Metric Learning Reality Check](https://arxiv.org/abs/2003.08505), ECCV 2020: why section 8 says so little on the strength of one pair of runs.
