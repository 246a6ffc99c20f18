"""The tensorflow-datasets builder that all tasks share. Imported only when data is touched.

No TensorFlow: array_record files, written in one pass as examples come (the writer of
tensorflow-datasets holds a split in memory, and beyond 1 GB spills it through TensorFlow).
"""

import errno
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

from lra_tasks.packed import document_names
from lra_tasks.store import unreadable


class LongRangeArena(tfds.core.GeneratorBasedBuilder):
    """Examples of a task: one or two documents as uint8, and a label."""

    name = "lra"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        set_name: str,
        version: str,
        num_documents: int,
        data_dir: str,
        splits: dict[str, Callable[[], Iterable[dict]]] | None = None,
    ):
        """`splits` gives the examples of each split; None when only opening what is there."""
        self.num_documents = num_documents
        self.splits = splits or {}
        self.record_sums: dict[str, list[int]] = {}  # crc32 of each record written
        config = tfds.core.BuilderConfig(
            name=set_name, version=version, description="Long Range Arena examples"
        )
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def _create_builder_config(self, builder_config, version):
        return builder_config  # without the warning that it is not one of BUILDER_CONFIGS

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded here, and writing.py reports what is prepared."""

    def _log_download_done(self) -> None:
        """See _log_download_bytes."""

    def _info(self) -> tfds.core.DatasetInfo:
        document = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes")
        names = document_names(self.num_documents)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Examples of a Long Range Arena task, as uint8.",
            features=tfds.features.FeaturesDict(
                {**{name: document for name in names}, "label": np.int64}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterable]:
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str):
        yield from enumerate(self.splits[split]())

    def _generate_splits(self, dl_manager, download_config) -> list[tfds.core.SplitInfo]:
        serializer = ExampleSerializer(self.info.features.get_serialized_info())
        infos = []
        for split, examples in self._split_generators(dl_manager).items():
            template = self._get_filename_template(split_name=split)
            path = template.sharded_filepath(shard_index=0, num_shards=1)
            writer = ArrayRecordWriter(str(path), "group_size:1")  # one seek reads one example
            sums = self.record_sums[split] = []
            num_bytes = 0
            for _, example in examples:
                record = serializer.serialize_example(self.info.features.encode_example(example))
                _to_disk(writer.write, path, record)
                sums.append(zlib.crc32(record))
                num_bytes += len(record)
            _to_disk(writer.close, path)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(sums)],
                    num_bytes=num_bytes,
                    filename_template=template,
                )
            )
        return infos


def _to_disk(write: Callable, path, *arguments) -> None:
    """Calls a writer's method; OSError where array_record says no more than RuntimeError."""
    try:
        write(*arguments)
    except RuntimeError as error:
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, str(error).partition(";")[0], str(path)) from error


class StoredExamples:
    """Random access to the examples of a prepared split: see `task.Split.examples`.

    A record is compared with its crc32 whenever it is read; sets of older versions have none.

    Raises:
      ValueError: a record can't be read, or is not as it was written.
    """

    def __init__(
        self,
        builder: LongRangeArena,
        split: str,
        sums: np.ndarray | None = None,
        dtype: type = np.uint8,
    ):
        self.split, self.sums, self.directory = split, sums, Path(builder.data_dir)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self.records = builder.as_data_source(split, deserialize_method=raw)
        self.names = document_names(builder.num_documents)

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: list[int]) -> list[dict]:
        try:
            records = self.records.__getitems__(list(indices))
            if self.sums is not None:
                for index, record in zip(indices, records, strict=True):
                    if zlib.crc32(record) != self.sums[index]:
                        raise ValueError(f"example {index} is not as it was written")
            return [self._parse(record) for record in records]
        except Exception as error:  # array_record raises bare RuntimeErrors and more
            raise unreadable(self.directory, f"{self.split}: {error}") from error

    def _parse(self, record: bytes) -> dict:
        # The decoder of tensorflow-datasets takes several times as long.
        fields = tf_example_pb2.Example.FromString(record).features.feature
        example = {
            name: np.frombuffer(fields[name].bytes_list.value[0], self.dtype) for name in self.names
        }
        example["label"] = fields["label"].int64_list.value[0]
        return example
