"""The papers, transcribed slowly: loops and formulas on float64 arrays, by hand and without autograd.

The network is ``models.ConvNet``: conv 3×3 (padding 1), ReLU, max-pool 2, conv 3×3 (padding 1), ReLU, mean over
positions, linear. One image (C, H, W) at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Array = np.ndarray


def conv(x: Array, w: Array, b: Array) -> Array:
    """3×3 cross-correlation with a border of zeros."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    z = np.zeros((len(w), *x.shape[1:]))
    for k, i, j in np.ndindex(z.shape):
        z[k, i, j] = (w[k] * padded[:, i : i + 3, j : j + 3]).sum() + b[k]
    return z


def conv_backward(g: Array, w: Array) -> Array:
    """Each output position hands its gradient to the inputs it saw, in proportion to the weights."""
    padded = np.zeros((w.shape[1], g.shape[1] + 2, g.shape[2] + 2))
    for k, i, j in np.ndindex(g.shape):
        padded[:, i : i + 3, j : j + 3] += g[k, i, j] * w[k]
    return padded[:, 1:-1, 1:-1]


def max_pool(x: Array) -> tuple[Array, Array]:
    """2×2 maxima, and the switches: where each was found."""
    c, h, w = x.shape
    pooled, switches = np.zeros((c, h // 2, w // 2)), np.zeros((c, h // 2, w // 2, 2), dtype=int)
    for k, i, j in np.ndindex(pooled.shape):
        window = x[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        di, dj = np.unravel_index(window.argmax(), (2, 2))
        pooled[k, i, j], switches[k, i, j] = window[di, dj], (2 * i + di, 2 * j + dj)
    return pooled, switches


def max_unpool(g: Array, switches: Array, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape)
    for k, i, j in np.ndindex(g.shape):
        out[k, switches[k, i, j, 0], switches[k, i, j, 1]] += g[k, i, j]
    return out


def relu_backward(g: Array, z: Array, rule: str) -> Array:
    """Springenberg et al. 2014, figure 1: backpropagation, the deconvolutional network, guided backpropagation."""
    out = np.zeros_like(g)
    for place in np.ndindex(g.shape):
        if rule == "plain":
            out[place] = g[place] if z[place] > 0 else 0
        elif rule == "deconv":
            out[place] = g[place] if g[place] > 0 else 0
        elif rule == "guided":
            out[place] = g[place] if z[place] > 0 and g[place] > 0 else 0
    return out


@dataclass
class Net:
    """The weights of ``models.ConvNet``."""

    w1: Array
    b1: Array
    w2: Array
    b2: Array
    w3: Array
    b3: Array

    @classmethod
    def of(cls, model: torch.nn.Module) -> Net:
        return cls(*(p.detach().double().numpy() for p in model.parameters()))

    def activation(self, x: Array) -> Array:
        """A, after the second ReLU: (K, h, w)."""
        pooled, _ = max_pool(np.maximum(conv(x, self.w1, self.b1), 0))
        return np.maximum(conv(pooled, self.w2, self.b2), 0)

    def scores(self, x: Array) -> Array:
        return self.w3 @ self.activation(x).mean((1, 2)) + self.b3

    def layer_gradient(self, x: Array, c: int) -> Array:
        """∂y_c/∂A: (K, h, w)."""
        activation = self.activation(x)
        g = np.zeros_like(activation)
        for k, i, j in np.ndindex(g.shape):
            g[k, i, j] = self.w3[c, k] / activation[k].size
        return g

    def input_gradient(self, x: Array, c: int, rule: str = "plain") -> Array:
        z1 = conv(x, self.w1, self.b1)
        pooled, switches = max_pool(np.maximum(z1, 0))
        z2 = conv(pooled, self.w2, self.b2)
        g = relu_backward(self.layer_gradient(x, c), z2, rule)
        g = max_unpool(conv_backward(g, self.w2), switches, z1.shape)
        return conv_backward(relu_backward(g, z1, rule), self.w1)


def cam(net: Net, x: Array, c: int) -> Array:
    """Zhou et al. 2016, eq. 2: M_c(i, j) = Σ_k w_k^c f_k(i, j)."""
    maps = net.activation(x)
    out = np.zeros(maps.shape[1:])
    for i, j in np.ndindex(out.shape):
        for k in range(len(maps)):
            out[i, j] += net.w3[c, k] * maps[k, i, j]
    return out


def grad_cam(a: Array, g: Array) -> Array:
    """Selvaraju et al. 2017, eq. 1 and 2 before the ReLU: α_k = 1/Z Σ_ij ∂y/∂A_ij^k."""
    out = np.zeros(a.shape[1:])
    for k in range(len(a)):
        alpha = sum(g[k, i, j] for i, j in np.ndindex(out.shape)) / out.size
        out += alpha * a[k]
    return out


def grad_cam_plus_plus(a: Array, g: Array) -> Array:
    """Chattopadhay et al. 2018, eq. 19 and 5: α_ij = g² / (2 g² + Σ_ab A_ab g³), w_k = Σ_ij α_ij ReLU(g_ij)."""
    out = np.zeros(a.shape[1:])
    for k in range(len(a)):
        w = 0.0
        for i, j in np.ndindex(out.shape):
            d = 2 * g[k, i, j] ** 2 + a[k].sum() * g[k, i, j] ** 3
            alpha = g[k, i, j] ** 2 / d if d > 0 else 0.0
            w += alpha * max(g[k, i, j], 0.0)
        out += w * a[k]
    return out


def layer_cam(a: Array, g: Array) -> Array:
    """Jiang et al. 2021, eq. 5 and 6: w_ij^k = ReLU(g_ij^k), Â_k = w_k · A_k."""
    out = np.zeros(a.shape[1:])
    for k, i, j in np.ndindex(a.shape):
        out[i, j] += max(g[k, i, j], 0.0) * a[k, i, j]
    return out


def hires_cam(a: Array, g: Array) -> Array:
    """Draelos & Carin 2020: Σ_k ∂y/∂A_k ⊙ A_k."""
    out = np.zeros(a.shape[1:])
    for k, i, j in np.ndindex(a.shape):
        out[i, j] += g[k, i, j] * a[k, i, j]
    return out


def xgrad_cam(a: Array, g: Array) -> Array:
    """Fu et al. 2020, eq. 9: w_k = Σ_ij A_ij^k / (Σ_ab A_ab^k) g_ij^k; an empty channel has weight 0."""
    out = np.zeros(a.shape[1:])
    for k in range(len(a)):
        total = a[k].sum()
        w = sum(a[k, i, j] / total * g[k, i, j] for i, j in np.ndindex(out.shape)) if total != 0 else 0.0
        out += w * a[k]
    return out


def eigen_cam(a: Array) -> Array:
    """Muhammad & Yeasin 2020: A = U Σ Vᵀ, the projection A V_1; uncentred, the sign such that its sum is positive."""
    matrix = a.reshape(len(a), -1).T  # positions × channels
    _, _, vt = np.linalg.svd(matrix)
    projected = (matrix @ vt[0]).reshape(a.shape[1:])
    return projected if projected.sum() >= 0 else -projected


def score_cam(scores: Callable[[Array], Array], x: Array, a: Array, c: int) -> Array:
    """Wang et al. 2020, algorithm 1, one channel at a time, the baseline a black image."""
    gained = []
    for channel in a:
        up = bilinear(channel, x.shape[1:])
        low, high = up.min(), up.max()
        mask = (up - low) / (high - low) if high > low else np.zeros_like(up)
        gained.append(scores(x * mask)[c] - scores(np.zeros_like(x))[c])
    powers = [np.exp(s - max(gained)) for s in gained]
    out = np.zeros(a.shape[1:])
    for k in range(len(a)):
        out += powers[k] / sum(powers) * a[k]
    return out


def smooth_grad(
    gradient: Callable[[Array, int], Array], images: Array, n_samples: int, noise_level: float, seed: int = 0
) -> Array:
    """Smilkov et al. 2017: the mean gradient of noisy copies, σ / (max − min) of the image the noise level.

    ``gradient`` is of an image, and takes its number too. The noise of a batch is drawn copy by copy, in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros_like(images)
    for _ in range(n_samples):
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float32).double().numpy()
        for n, image in enumerate(images):
            sigma = noise_level * (image.max() - image.min())
            total[n] += gradient(image + sigma * noise[n], n)
    return total / n_samples


def guided_grad_cam(guided: Array, cam_map: Array, up: Callable[[Array, tuple[int, ...]], Array]) -> Array:
    """Selvaraju et al. 2017, section 3.2: guided backpropagation times the upsampled ReLU of Grad-CAM."""
    return guided * up(np.maximum(cam_map, 0), guided.shape[1:])


def drnet(net: Net, x: Array, c: int) -> Array:
    """R(x) = Σ_i λ_i Σ_k α_ik F_ik, α the mean of ∂y/∂F, y = log p_c, over the two ReLUs with λ = ½ each."""
    p = np.exp(net.scores(x) - net.scores(x).max())
    p = p / p.sum()
    z1 = conv(x, net.w1, net.b1)
    pooled, switches = max_pool(np.maximum(z1, 0))
    z2 = conv(pooled, net.w2, net.b2)
    g2 = sum(((k == c) - p[k]) * net.layer_gradient(x, k) for k in range(len(p)))
    g1 = max_unpool(conv_backward(relu_backward(g2, z2, "plain"), net.w2), switches, z1.shape)
    out = np.zeros(x.shape[1:])
    for f, g in ((np.maximum(z1, 0), g1), (np.maximum(z2, 0), g2)):
        m = grad_cam(f, g)
        for i, j in np.ndindex(m.shape):  # every position hands out its value in full
            share = np.zeros(m.shape)
            share[i, j] = 1
            share = bilinear(share, out.shape)
            out += 0.5 * m[i, j] * share / share.sum()
    return out[None]


def nearest(m: Array, size: tuple[int, ...]) -> Array:
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        out[i, j] = m[i * m.shape[0] // size[0], j * m.shape[1] // size[1]]
    return out


def bilinear(m: Array, size: tuple[int, ...]) -> Array:
    """Pixel centres at half-integers, edges clamped."""
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        y = min(max((i + 0.5) * m.shape[0] / size[0] - 0.5, 0), m.shape[0] - 1)
        x = min(max((j + 0.5) * m.shape[1] / size[1] - 0.5, 0), m.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, m.shape[0] - 1), min(left + 1, m.shape[1] - 1)
        v, h = y - top, x - left
        out[i, j] = (1 - v) * ((1 - h) * m[top, left] + h * m[top, right])
        out[i, j] += v * ((1 - h) * m[bottom, left] + h * m[bottom, right])
    return out


def rise_mask(grid: Array, offset: tuple[int, int], size: tuple[int, int]) -> Array:
    """Petsiuk et al. 2018, section 3.2: enlarge the grid to (h + 1)·cell, crop at the offset. One mask (H, W)."""
    h, w = grid.shape
    cell = -(-size[0] // h), -(-size[1] // w)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(grid.astype(float))[None, None],
        size=((h + 1) * cell[0], (w + 1) * cell[1]),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    return enlarged[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]


def box_iou(a: Array, b: Array) -> float:
    """Intersection over union of two boxes, xyxy."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if both > 0 else 0.0


def drise_weight(target: tuple[Array, Array], proposals: list[tuple[Array, Array, float]]) -> float:
    """Petsiuk et al. 2021, equations 5 to 8: the best of all proposals (box, classes, objectness)."""
    best = 0.0
    for box, classes, objectness in proposals:
        cosine = float(target[1] @ classes) / (np.linalg.norm(target[1]) * np.linalg.norm(classes))
        best = max(best, box_iou(target[0], box) * cosine * objectness)
    return best


def masked_sum(
    image: Array,
    baseline: Array,
    grids: Array,
    offsets: Array,
    weigh: Callable[[Array], float],
    normalize: str,
    keep_probability: float,
) -> Array:
    """Σ w_i M_i over masks, one at a time, and what is made of it. ``image``, ``baseline``: (C, H, W)."""
    size = image.shape[1:]
    masks = [rise_mask(g, tuple(int(v) for v in o), size) for g, o in zip(grids, offsets, strict=True)]
    weights = [weigh(baseline + mask * (image - baseline)) for mask in masks]
    total = np.zeros(size)
    for weight, mask in zip(weights, masks, strict=True):
        total += (weight - np.mean(weights) if normalize == "mean" else weight) * mask
    if normalize == "expectation":
        return total / (len(masks) * keep_probability)
    return total / np.sum(masks, axis=0) if normalize == "coverage" else total


def rise(score: Callable[[Array], float], x: Array, n: int, grid: tuple[int, int]) -> Array:
    """RISE with black (0) where it hides and the mean weight taken off, alike in all channels: (C, H, W)."""
    drawn = torch.rand(n, grid[0] * grid[1] + 2, generator=torch.Generator().manual_seed(0)).numpy()
    cell = np.array([-(-x.shape[1] // grid[0]), -(-x.shape[2] // grid[1])])
    grids = (drawn[:, :-2] < 0.5).reshape(n, *grid)
    heat = masked_sum(x, np.zeros_like(x), grids, np.floor(drawn[:, -2:] * cell), score, "mean", 0.5)
    return np.broadcast_to(heat, x.shape).copy()


def mask_covariance(size: int, cells: int, keep_probability: float) -> Array:
    """Cov(M(p), M(q)) along one axis divided by √(p(1 − p)), exactly: the mean over offsets of R Rᵀ, (size, size).

    Grid cells are independent, and so are the offsets of the two axes: the covariance of two pixels is
    p(1 − p) · (this along the height) · (this along the width).
    """
    cell = -(-size // cells)
    total = np.zeros((size, size))
    for offset in range(cell):
        rows = np.stack([rise_mask(unit[:, None], (offset, 0), (size, 1))[:, 0] for unit in np.eye(cells)], 1)
        total += rows @ rows.T
    return total / cell
