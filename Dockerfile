# docker build -t bam_exp .
# docker run --rm --gpus all --ipc host -v DIR:/data -v "$PWD":/work bam_exp bam-train +experiment=table1a data_root=/data
FROM python:3.12-slim
# torch.compile generates C++ on a CPU, and on a GPU Triton compiles its launchers.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /opt/bam_exp
RUN pip install --no-cache-dir -c /opt/bam_exp/constraints.txt '/opt/bam_exp[train,slurm,export]'
WORKDIR /work
CMD ["bam-train", "--help"]
