# The book with everything it needs, in the versions of constraints.txt.
#   docker build -t groot-cookbook .                                  CPU
#   docker build -t groot-cookbook --build-arg TORCH_INDEX=URL .      PyTorch's index of a CUDA build, for docker run --gpus all
#   docker run --rm -p 8888:8888 groot-cookbook                       the chapters, at the address it prints; what you make in them is gone when it stops,
#                                                                     unless --rm is left out and the container given a --name
# Not built yet where this was written: see workshop/README.md.
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update && apt-get install -y --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader
RUN install -d -o reader -g reader /home/reader/groot_cookbook
USER reader
WORKDIR /home/reader/groot_cookbook

# make looks here for its environment; it stands beside the book, so that a checkout may be mounted over the book's folder.
ENV VENV=/home/reader/venv
ENV PATH="$VENV/bin:$PATH"

# torch first, as in the Makefile, and torchvision with it, of the same build: whichever was asked for is settled before anything else wants it.
COPY --chown=reader constraints.txt settings.ini setup.py pyproject.toml README.md ./
COPY --chown=reader groot_cookbook groot_cookbook
RUN python -m venv "$VENV" \
    && pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch torchvision \
    && pip install --no-cache-dir -c constraints.txt -e '.[all]'
COPY --chown=reader . .
RUN touch "$VENV/.ready"
EXPOSE 8888
CMD ["jupyter", "lab", "--ServerApp.root_dir=.", "--LabApp.default_url=/lab/tree/nbs", "--ip=0.0.0.0", "--no-browser"]
