"""A linear system with a quadratic cost, solved exactly by the Riccati recursion in float64 NumPy."""

import numpy as np
import torch

A = np.array([[1.0, 0.3], [0.0, 0.9]])
B = np.array([[0.0, 0.1], [0.4, 0.2]])
Q = np.diag([1.0, 0.1])
R = 0.05 * np.eye(2)
HORIZON = 6
STARTS = np.array([[1.0, 0.0], [-0.5, 0.8], [0.2, -1.0]])


def optimum(start):
    """The least sum over t of x_t' Q x_t + u_t' R u_t (x after action t), and the actions that reach it."""
    gains, P = [], np.zeros_like(Q)
    for _ in range(HORIZON):
        S = Q + P
        K = np.linalg.solve(R + B.T @ S @ B, B.T @ S @ A)
        P = A.T @ S @ (A - B @ K)
        gains.append(K)
    actions, x = [], start
    for K in reversed(gains):
        actions.append(-K @ x)
        x = A @ x + B @ actions[-1]
    return float(start @ P @ start), np.stack(actions)


def dynamics(state, action):
    """States carry the price of the actions so far in their last entry."""
    a, b, r = (torch.from_numpy(matrix).to(state) for matrix in (A, B, R))
    price = state[:, 2:] + torch.einsum("bi,ij,bj->b", action, r, action)[:, None]
    return torch.cat([state[:, :2] @ a.T + action @ b.T, price], dim=1)


def cost(trajectory):
    q = torch.from_numpy(Q).to(trajectory)
    x = trajectory[:, :, :2]
    return torch.einsum("bti,ij,btj->b", x, q, x) + trajectory[:, -1, 2]


def states(dtype=torch.float64):
    starts = torch.from_numpy(STARTS)
    return torch.cat([starts, torch.zeros(len(starts), 1)], dim=1).to(dtype)
