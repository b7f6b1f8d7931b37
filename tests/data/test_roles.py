"""Pictures beside training pictures that are none: masks and conditions, samples, other splits; and what only looks so."""

import logging

import pytest
from PIL import Image
from tests.tiny import picture

from diffmem.data.images import load_images
from diffmem.errors import DataError


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="diffmem.data")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


def pictures(folder, *names, mode="RGB"):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).convert(mode).save(folder / name)
    return folder


class TestMasks:
    @pytest.mark.parametrize("kind", ["mask", "masks", "Masks", "segmentation", "conditioning_images"])
    @pytest.mark.parametrize("home", ["images/", "10_sks dog/", ""])
    def test_of_a_folder_beside_or_within_the_pictures(self, tmp_path, said, kind, home):
        within = f"{home if home != 'images/' else ''}{kind}"
        pictures(tmp_path, f"{home}a.png", f"{home}b.jpg")
        pictures(tmp_path, f"{within}/a.png", f"{within}/b.png", mode="L")
        assert list(load_images(tmp_path).ids) == [f"{home}a.png", f"{home}b.jpg"]
        assert "2 of 4 files" in said() and f"{within}/a.png" in said() and "masks or conditions" in said()

    def test_of_few_colours(self, tmp_path, said):
        pictures(tmp_path, "images/a.png")
        (tmp_path / "masks").mkdir()
        picture(0).quantize(5).convert("RGB").save(tmp_path / "masks" / "a.png")
        assert list(load_images(tmp_path).ids) == ["images/a.png"]

    @pytest.mark.parametrize("name", ["a_mask.png", "a-mask.png", "a.mask.png", "a_depth.webp", "a.seg.png"])
    def test_of_a_file_beside_its_picture(self, tmp_path, said, name):
        pictures(tmp_path, "a.jpg", "b.jpg")
        pictures(tmp_path, name, mode="L")
        assert list(load_images(tmp_path).ids) == ["a.jpg", "b.jpg"]
        assert name in said() and "mask or condition" in said()

    @pytest.mark.parametrize(
        "names",
        [
            ("mask/1.png", "mask/2.png", "no_mask/3.png"), ("mask/1.png", "no_mask/1.png"), ("a_mask.png", "b.png"),
            ("normal/1.png", "pneumonia/1.png"), ("masks/1.png", "masks/2.png"),
        ],
    )  # fmt: skip
    def test_no_pictures_are_taken_for_them_by_their_name_alone(self, tmp_path, names):
        assert list(load_images(pictures(tmp_path, *names)).ids) == sorted(names)

    @pytest.mark.parametrize("kind", ["control", "source", "masks"])
    def test_what_may_be_a_condition_counts_and_is_said(self, tmp_path, said, kind):
        pictures(tmp_path, "target/0.png", "target/1.png", f"{kind}/0.png", f"{kind}/1.png")
        assert len(load_images(tmp_path)) == 4
        assert f"2 pictures of {tmp_path} lie in folders whose names may mean" in said() and f"({kind})" in said()

    def test_samples_of_a_trainer_are_said(self, tmp_path, said):
        pictures(tmp_path, "img/5_fox/a.png", "model/sample/0001.png")
        assert len(load_images(tmp_path)) == 2
        assert "may mean pictures that a model made (model/sample)" in said()


class TestSplits:
    @pytest.mark.parametrize(
        ("one", "two"),
        [
            ("train2017", "val2017"), ("train_images", "test_images"), ("images-train", "images-val"), ("trainA", "testA"),
            ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("DIV2K_train_HR", "DIV2K_valid_HR"), ("Trainset", "TestSet"),
        ],
    )  # fmt: skip
    def test_of_one_data_set_by_any_name(self, tmp_path, one, two):
        pictures(tmp_path, f"{one}/a.png", f"{two}/b.png")
        with pytest.raises(DataError, match="several splits") as problem:
            load_images(tmp_path)
        assert one in str(problem.value) and two in str(problem.value)

    @pytest.mark.parametrize(
        ("one", "two"), [("train station", "test tube"), ("train1", "train2"), ("valid", "invalid"), ("bus", "train")]
    )
    def test_classes_that_sound_so(self, tmp_path, one, two):
        images = load_images(pictures(tmp_path, f"{one}/a.png", f"{two}/b.png"))
        assert {item.label for item in images.words()} == {one, two}

    def test_of_shards_with_the_data_set_before_them(self, tmp_path):
        import io
        import tarfile

        for name in ("cc3m-train-0000.tar", "cc3m-validation-0000.tar"):
            out = io.BytesIO()
            Image.new("RGB", (8, 8)).save(out, "PNG")
            with tarfile.open(tmp_path / name, "w") as shard:
                member = tarfile.TarInfo("a.png")
                member.size = len(out.getvalue())
                shard.addfile(member, io.BytesIO(out.getvalue()))
        with pytest.raises(DataError, match="several splits"):
            load_images(tmp_path)
        assert list(load_images(tmp_path / "cc3m-train-*.tar").ids) == ["cc3m-train-0000.tar/a.png"]
