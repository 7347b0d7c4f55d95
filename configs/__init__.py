"""Configuration presets. Installs as ``rl_estimators.configs``."""
