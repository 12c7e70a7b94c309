# README's two lines. `docker build --target quickstart -t fedsim .` stops after the first, whose report is /fedsim/runs/quickstart.
FROM python:3.11 AS quickstart
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /fedsim
COPY . .
RUN python -m pip install -c constraints.txt -e . && fedsim bench --grid benchmarks/quickstart.yaml

FROM quickstart AS tests
RUN python -m pip install -c constraints.txt -e ".[dev]" && python -m pytest
