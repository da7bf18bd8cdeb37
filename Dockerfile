# sscl in a container, on a CPU or on NVIDIA GPUs.
#   docker build -t sscl .                                               # CPU
#   docker build -t sscl:cuda --build-arg TORCH=cuda .                   # GPUs from Turing on, about 6 GB more
#   docker run --rm -v "$PWD:/work" sscl demo                            # add --gpus all for the second one
# Not verified: neither image was ever built.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG TORCH=cpu

WORKDIR /opt/sscl
COPY constraints.txt ./
# torch first, in a layer of its own: it is the large one, and seldom changes. PyPI's wheel brings CUDA along.
RUN case "$TORCH" in \
      cpu) index="--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple" ;; \
      cuda) index="" ;; \
      *) echo "TORCH=$TORCH: cpu or cuda" >&2; exit 1 ;; \
    esac; \
    pip install --no-cache-dir --constraint constraints.txt $index torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[timm]"

# Files that the container writes belong to whoever starts it with --user "$(id -u):$(id -g)".
ENV SSCL_CACHE=/tmp/sscl MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["sscl"]
CMD ["--help"]
