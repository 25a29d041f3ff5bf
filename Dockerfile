# The image of --backend=gke: the code as it is here, and what constraints.txt pins.
#   docker build -t IMAGE --build-arg EXTRAS=tpu,gs . && docker push IMAGE
FROM python:3.13-slim
ARG EXTRAS=gpu,gs
WORKDIR /lm
COPY . .
RUN pip install --no-cache-dir -e ".[$EXTRAS]" -c constraints.txt
