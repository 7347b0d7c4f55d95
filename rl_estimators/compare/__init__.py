"""Estimators side by side on rollouts that were really made: who is praised, who is blamed, and for what."""
