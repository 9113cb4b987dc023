"""vLLM's weight transfer over a TCPStore instead of NCCL, so that pipeline/transfer.py meets a real server on a machine without a GPU."""

import math
from dataclasses import asdict

import torch
from torch.distributed import TCPStore
from vllm.distributed.weight_transfer import TrainerWeightTransferEngine, WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from pipeline.worker import WeightLoader

PIECE = 4 * 2**20
"""Bytes: a TCPStore takes 8 MB at once."""


class StoreReceiver(NCCLWeightTransferEngine):
    """Reads each weight where the broadcast would be."""

    def init_transfer_engine(self, init_info):
        self.store = TCPStore(init_info.master_address, init_info.master_port)

    def update_weights(self, update_info):
        info = self.parse_update_info(update_info)
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            kind = getattr(torch, dtype)
            size = math.prod(shape) * kind.itemsize
            raw = bytearray(b"".join(self.store.get(f"{name}/{start}") for start in range(0, size, PIECE)))
            self.model.load_weights([(name, torch.frombuffer(raw, dtype=kind).view(shape))])

    def shutdown(self):
        self.store = None


class StoreSender(TrainerWeightTransferEngine):
    """Writes them."""

    init_info_cls = NCCLTrainerInitInfo

    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):
        made = cls(client=client, source=source)
        made.store = TCPStore(init_info.master_address, init_info.master_port, is_master=True, wait_for_workers=False)
        worker = NCCLWeightTransferInitInfo(
            master_address=init_info.master_address, master_port=init_info.master_port, rank_offset=1, world_size=init_info.world_size
        )
        client.init_weight_transfer_engine({name: value for name, value in asdict(worker).items() if value is not None})
        return made

    def send_weights(self):
        meta = self.source.metadata()
        self.client.start_weight_update()
        for name, weight in self.source:
            raw = weight.view(-1).view(torch.uint8).numpy().tobytes()
            for start in range(0, len(raw), PIECE):
                self.store.set(f"{name}/{start}", raw[start : start + PIECE])
        names, shapes = [one.name for one in meta], [list(one.shape) for one in meta]
        info = NCCLWeightTransferUpdateInfo(names, [str(one.dtype).removeprefix("torch.") for one in meta], shapes)
        self.client.update_weights(asdict(info))
        self.client.finish_weight_update()


class StoreLoader(WeightLoader):
    """The worker's extension; importing this module puts the store in NCCL's place, on both sides."""


WeightTransferEngineFactory._registry["nccl"] = lambda: StoreReceiver
WeightTransferTrainerFactory._registry["nccl"] = lambda: StoreSender
