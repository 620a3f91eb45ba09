"""Packaging of dynavit; settings of the development tools are in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "dynavit/version.py").read_text())

extras = {
    "train": [  # training, evaluation and all other commands
        "torchvision>=0.24",
        "accelerate>=1.10",
        "tensorboard>=2.18",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "omegaconf>=2.4",
        "pillow>=10.1",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "tqdm>=4.66",
    ],
    "export": ["onnx>=1.17", "onnxscript>=0.7", "onnxruntime>=1.20"],
    "openvino": ["openvino>=2026.0", "nncf>=3.0", "onnx>=1.17", "onnxscript>=0.7"],
    "reid": ["pytorch-metric-learning>=2.9"],
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
    "examples": ["transformers>=5.0", "faiss-cpu>=1.10", "fastapi>=0.115", "httpx>=0.27", "uvicorn>=0.32"],
}
extras["dev"] = [
    *extras["train"],
    *extras["export"],
    *extras["openvino"],
    *extras["reid"],
    *extras["docs"],
    "build>=1.2",
    *extras["examples"],
    "hypothesis>=6.100",
    "import-linter>=2.1",
    "ipykernel>=6.29",
    "mypy>=1.15",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.11",
    "setuptools>=70.1",  # builds the package in examples/own_selector
]


class BuildWithConfigs(build_py):
    """Puts ``configs/`` inside the package, so that installations without a checkout have them."""

    def run(self):
        super().run()
        if not self.editable_mode:  # which reads those of the checkout
            shutil.copytree(here / "configs", Path(self.build_lib) / "dynavit" / "configs", dirs_exist_ok=True)


setup(
    name="dynavit",
    version=version.group(1) if version else "0",
    description="Make Vision Transformers cheaper by merging or dropping tokens while they run",
    long_description=(here / "README.md").read_text() if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["dynavit", "dynavit.*"]),
    package_data={"dynavit": ["py.typed", "report/*.html"]},
    python_requires=">=3.10",
    # for inference; everything else is imported by the command or function that needs it
    install_requires=["torch>=2.9", "timm>=1.0.22", "safetensors>=0.4.5", "huggingface_hub>=0.34"],
    extras_require=extras,
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["dynavit = dynavit.cli:main"]},
)
