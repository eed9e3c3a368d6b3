#include "backend/cuda/linear_decode_launch.cuh"

template void fasa::cuda::decode::launch_products<4, fasa::cuda::decode::Team::few>(Launch, const Job&, bool);
