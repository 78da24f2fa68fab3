#!/bin/sh
# A sweep over SLURM, without an sbatch script: adapt the lines below to your cluster, then, on its login node,
#
#     scripts/slurm/sweep.sh +experiment=table1a data_root=/where/the/data/is output_dir=/shared/by/all/nodes
#
# What is typed after the script's name comes last and wins. docs/slurm.md says what each line means.
exec bam-train --multirun \
    hydra/launcher=submitit_slurm \
    hydra.launcher.partition=gpu \
    hydra.launcher.gpus_per_node=1 \
    hydra.launcher.cpus_per_task=4 \
    hydra.launcher.mem_gb=16 \
    hydra.launcher.timeout_min=240 \
    hydra.launcher.signal_delay_s=120 \
    hydra.launcher.max_num_timeout=50 \
    hydra.launcher.array_parallelism=16 \
    trainer.device=cuda \
    trainer.threads=4 \
    "$@"
