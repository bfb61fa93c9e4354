"""An object store holds nothing, the old version or the new one; never a mix.

The store is a real S3 server on loopback.
"""

import json
import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import obstore
import pytest
from click.testing import CliRunner
from making import job_maker, make_scene, random_pixels, succeed
from obstore.exceptions import GenericError
from s3 import SECRET, contents, next_second, plain, serve

from tileseg.cli import main
from tileseg.errors import BusyError, ExitCode, OutputError, StorageError, UsageError
from tileseg.job import run
from tileseg.publishing.bucket import Bucket, open_place
from tileseg.settings import Job
from tileseg.stores import objects
from tileseg.stores.objects import Objects

PRODUCTS = {
    "mask.tif",
    "confidence.tif",
    "quicklook.png",
    "item.json",
    "report.html",
}
NUMBERS = count()
PLAIN = str.maketrans("/?", "--")


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def output(request):
    """A prefix of its own, named as scenes may be."""
    name = f"{request.node.name} {next(NUMBERS)}".translate(PLAIN)
    return f"s3://maps/night 1/{name}"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(130, 171))


@pytest.fixture
def job(tmp_path, scene, model_path, output):
    """Make a job whose outputs go to the store."""
    return job_maker(
        tmp_path,
        scene,
        model_path,
        output=output,
        work=str(tmp_path / "work"),
        shard=96,
        precision="fp32",
        confidence=True,
    )


def test_a_scene_that_came_again_is_brought_up_to_date(job, output, server, tmp_path):
    pixels = random_pixels(130, 171)
    facts = {"input": str(tmp_path / "scene.tif"), "incremental": True}
    make_scene(tmp_path / "scene.tif", pixels)
    succeed(job(**facts))
    pixels[:, 110:115, 150:160] = 4321  # of the last of four shards
    make_scene(tmp_path / "scene.tif", pixels)

    values = succeed(job(**facts))
    other = succeed(job(**facts, output=f"{output} too"))

    assert values["counts"]["shards_unchanged"] == 3
    assert other["counts"]["shards_unchanged"] == 0
    found, wanted = (
        {
            path.rpartition("/")[2]: data
            for path, data in contents(place, server).items()
            if path.endswith((".tif", "shards.json"))
        }
        for place in (output, f"{output} too")
    )
    assert found == wanted
    assert found.keys() == {"mask.tif", "confidence.tif", "shards.json"}


def listed(output):
    """Return path to (etag, last modified, size) of all objects of a prefix."""
    items = obstore.list(Objects(output)._store).collect()
    return {i["path"]: (i["e_tag"], i["last_modified"], i["size"]) for i in items}


def fetch(output, path):
    return bytes(obstore.get(Objects(output)._store, path).bytes())


def version(output):
    """Follow the record as a reader does: its request and the products' bytes.

    Of the report, which says how long it took, that it is there.
    """
    record = json.loads(fetch(output, "run.json"))
    found = {plain(item["path"]): item["path"] for item in record["outputs"]}
    return record["request_id"], {
        name: fetch(output, path)[: 0 if name.endswith("report.html") else None]
        for name, path in found.items()
    }


def stage(
    output, work, name, *, plan="a" * 32, request="one", status="complete", keep=0
):
    """Publish a version without a job."""
    place = Bucket(output, work, keep=keep)
    place.published()
    with place.staging() as folder:
        fill(place, folder, name, plan=plan, request=request, status=status)
    return place


def fill(place, folder, name, *, plan="a" * 32, request="one", status="complete"):
    (folder / "mask.tif").write_text(name)
    record = {
        "status": status,
        "request_id": request,
        "plan_id": plan,
        "outputs": place.list_outputs(folder, plan),
    }
    (folder / "run.json").write_text(json.dumps(record))


class CrashError(BaseException):
    """The process dies here."""


def die(*_args):
    raise CrashError


# The whole job


def test_the_store_gets_the_bytes_that_a_directory_gets(job, output, tmp_path):
    local = job(output=str(tmp_path / "out"), work=str(tmp_path / "other"))
    succeed(local)

    values = succeed(job())

    paths = {item["path"] for item in values["outputs"]}
    assert {f"{values['plan_id']}/{name}" for name in PRODUCTS} == set(
        map(plain, paths)
    )
    assert paths | {"run.json"} == set(listed(output))
    assert values == json.loads(fetch(output, "run.json"))
    timed = {path for path in paths if path.endswith("report.html")}
    for path in paths - timed:
        expected = (local.output_path / Path(path).name).read_bytes()
        assert expected == fetch(output, path)
    assert {"inputs.json"} == {i.name for i in job().work_path.iterdir()}


def test_a_second_run_touches_nothing(job, output, monkeypatch):
    first = succeed(job())
    before = listed(output)
    monkeypatch.setattr(obstore, "put", lambda *_args, **_more: pytest.fail("put"))

    second = succeed(job())

    assert first == second
    assert before == listed(output)


def test_a_second_run_loads_no_torch(job, output):
    """Nor does it need what it would take to run: it ends before that."""
    succeed(job())
    facts = {"input": job().input, "model": job().model, "output": output}
    facts |= {"work": job().work, "shard": 96, "precision": "fp32", "confidence": True}
    program = (
        "import sys; from tileseg.job import run; from tileseg.settings import Job; "
        f"r = run(Job(**{facts!r})); print(r.error, r.is_news, 'torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert done.stdout.split() == ["None", "False", "False"]


def test_another_plan_is_refused_and_replaces_the_old_one_if_asked(job, output):
    old = succeed(job())
    before = listed(output)

    refused = run(job(confidence=False))

    assert refused.values["exit_code"] == ExitCode.BUSY
    assert f"{output}: holds the result of another plan" in str(refused.error)
    assert before == listed(output)

    new = succeed(job(confidence=False, overwrite=True))

    plan_id = new["plan_id"]
    names = ("mask.tif", "quicklook.png", "item.json", "report.html")
    expected = {"run.json", *(f"{plan_id}/{name}" for name in names)}
    assert plan_id != old["plan_id"]
    assert expected == set(map(plain, listed(output)))


def test_a_missing_product_is_made_again(job, output):
    values = succeed(job())
    before = version(output)
    path = next(path for path in listed(output) if path.endswith("mask.tif"))
    obstore.delete(Objects(output)._store, path)

    again = succeed(job())

    assert again["plan_id"] == values["plan_id"]
    assert before == version(output)


def test_a_job_is_run_again_from_a_record_in_the_store(job, output):
    first = succeed(job())

    words = ["segment", "--config", f"{output}/run.json"]
    again = CliRunner().invoke(main, words)
    missing = CliRunner().invoke(main, [*words[:2], f"{output}/no.json"])

    assert again.exit_code == 0
    assert json.loads(again.stdout) == first
    assert missing.exit_code == ExitCode.USAGE
    assert "there is no such object" in missing.stderr


def test_a_night_goes_to_a_prefix(tmp_path, scene, model_path, output):
    words = ["nightly", "--scenes", scene.parent, "--output", output + "/"]
    words += ["--model", model_path, "--work", tmp_path / "work"]

    first, second = (CliRunner().invoke(main, list(map(str, words))) for _ in "12")

    assert (first.exit_code, second.exit_code) == (0, 0)
    summary = json.loads(fetch(output, "night.json"))
    (told,) = summary["scenes"]
    assert [told] == json.loads(second.stdout.splitlines()[-1])["scenes"]
    assert told["state"] == "unchanged"
    assert told["output"] == f"{output}/scene"
    assert "run.json" in listed(told["output"])
    (link,) = json.loads(fetch(output, "collection.json"))["links"]
    item = json.loads(fetch(output, link["href"].removeprefix("./")))
    assert item["id"] == "scene"


def test_a_nights_file_leads_to_a_prefix_and_its_scenes_come_from_one(
    tmp_path, scene, model_path, output
):
    """The second run of a night changes no object; a changed scene is made again."""
    scenes = Objects(f"{output} in")
    scenes.write("a.tif", Path(scene))
    scenes.write("b.tif", Path(scene))
    path = tmp_path / "nightly.toml"
    path.write_text(
        f'[source]\nscenes = "{scenes}/*.tif"\n[target]\noutput = "{output}"\n'
        f'work = "{tmp_path / "work"}"\n[job]\nmodel = "{model_path}"\ntrusted = true\n'
    )
    words = ["nightly", "--config", str(path)]

    first = CliRunner().invoke(main, words)
    before = Objects(output).items()
    second = CliRunner().invoke(main, words)

    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr
    assert before == Objects(output).items()
    assert {"night.html", "night-state.json", "collection.json"} <= set(before)
    summary = json.loads(second.stdout)
    assert summary["counts"]["done"] == 2
    links = json.loads(fetch(output, "collection.json"))["links"]
    assert len(links) == 2
    page = fetch(output, "night.html").decode()
    (found,) = re.findall(r'href="\./(a/[^"]+/report\.html)"', page)
    assert found in before
    next_second()
    changed = random_pixels(130, 171, seed=7)
    scenes.write("b.tif", make_scene(tmp_path / "b.tif", changed))
    third = CliRunner().invoke(main, words)
    told = {
        it["name"]: it["state"]
        for it in json.loads(third.stdout.splitlines()[-1])["scenes"]
    }
    assert told == {"a": "done", "b": "done"}
    assert len(third.stdout.splitlines()) == 2
    assert len(json.loads(fetch(output, "collection.json"))["links"]) == 2


def test_what_a_killed_run_built_in_the_temporary_directory_goes(
    job, output, tmp_path, monkeypatch
):
    """That of another work directory stays: its run may be at it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "_publish", die)
        patch.setattr("shutil.rmtree", lambda *_args, **_options: None)
        for work in ("one", "two"):
            with pytest.raises(CrashError):
                run(job(work=f"{output}-{work}"))
    assert len(list(tmp_path.glob("tileseg.*"))) == 2

    succeed(job(work=f"{output}-one"))

    assert len(list(tmp_path.glob("tileseg.*"))) == 1


def test_an_uploaded_working_directory_lets_the_store_through(job, monkeypatch):
    config = json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)

    succeed(job(engine="local"))
    refused = run(job(engine="local", work=""))

    assert refused.values["exit_code"] == ExitCode.USAGE
    assert str(refused.error).startswith("--work out/")


# The switch


@pytest.mark.parametrize("number", [2, 4])
def test_a_failed_upload_leaves_the_old_version(job, output, monkeypatch, number):
    """Whichever put fails, the record's too; the same command then makes it good."""
    succeed(job(blend="cosine"))
    before = version(output)
    put, calls = obstore.put, []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) == number:
            raise GenericError("the line is dead")
        return put(*args, **options)

    monkeypatch.setattr(obstore, "put", fail)
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0)
    failed = run(job(overwrite=True))
    monkeypatch.setattr(obstore, "put", put)

    assert failed.values["exit_code"] == ExitCode.STORAGE
    assert len(calls) == number
    assert before == version(output)

    values = succeed(job(overwrite=True))

    assert values["counts"]["shards_reused"] == values["counts"]["shards"]
    assert before[0] != version(output)[0]
    assert {values["plan_id"], "run.json"} == {
        plain(path).partition("/")[0] for path in listed(output)
    }


def test_an_object_that_did_not_arrive_whole_is_not_published(job, output, monkeypatch):
    """What the record lists is looked at again before the switch."""
    succeed(job(blend="cosine"))
    before = version(output)
    put = obstore.put

    def lose_the_end(store, path, data, **options):
        if path.endswith("mask.tif"):
            data = data.read_bytes()[:-1]
        return put(store, path, data, **options)

    monkeypatch.setattr(obstore, "put", lose_the_end)
    failed = run(job(overwrite=True))
    monkeypatch.undo()

    assert failed.values["exit_code"] == ExitCode.STORAGE
    assert "mask.tif: got" in str(failed.error)
    assert before == version(output)


def test_what_a_killed_upload_left_is_not_foreign(output, tmp_path, monkeypatch):
    put = obstore.put

    def die(store, path, *args, **options):
        if path == "run.json":
            raise CrashError
        return put(store, path, *args, **options)

    monkeypatch.setattr(obstore, "put", die)
    with pytest.raises(CrashError):
        stage(output, tmp_path, "half")
    monkeypatch.undo()
    assert [plain(path) for path in listed(output)] == [f"{'a' * 32}/mask.tif"]

    stage(output, tmp_path, "whole")

    assert version(output) == ("one", {f"{'a' * 32}/mask.tif": b"whole"})


def test_who_deletes_late_hits_nothing_that_is_listed_now(
    output, tmp_path, monkeypatch
):
    """A run stands still after its switch; meanwhile what it replaced is published
    again, by the plan whose old objects it is about to delete."""
    stage(output, tmp_path / "first", "first")
    remove = Objects.remove

    def stand_still(store, *names):
        monkeypatch.undo()
        stage(output, tmp_path / "again", "again")
        remove(store, *names)

    monkeypatch.setattr(Objects, "remove", stand_still)
    stage(output, tmp_path / "late", "late", plan="b" * 32, request="two")

    assert version(output) == ("one", {f"{'a' * 32}/mask.tif": b"again"})


def test_what_the_next_run_replaced_at_once_is_not_uploaded_again(
    output, tmp_path, monkeypatch
):
    put = obstore.put

    def be_overtaken(store, path, *args, **options):
        answer = put(store, path, *args, **options)
        if path == "run.json":
            monkeypatch.undo()
            stage(output, tmp_path / "next", "new", plan="b" * 32, request="two")
        return answer

    monkeypatch.setattr(obstore, "put", be_overtaken)
    stage(output, tmp_path, "old")

    assert version(output) == ("two", {f"{'b' * 32}/mask.tif": b"new"})
    assert {"run.json", f"{'b' * 32}/mask.tif"} == set(map(plain, listed(output)))


def test_a_publication_sweeps_what_killed_runs_left(output, tmp_path):
    """Of whatever plan; another that is on its way is younger than the record."""
    stage(output, tmp_path, "old")
    Objects(output).write(f"{'e' * 32}/mask.tif", b"left")
    next_second()

    stage(output, tmp_path, "new", plan="b" * 32)

    assert {"run.json", f"{'b' * 32}/mask.tif"} == set(map(plain, listed(output)))


@pytest.mark.parametrize("is_first", [True, False])
def test_the_loser_of_a_race_is_told_and_changes_nothing(output, tmp_path, is_first):
    if not is_first:
        stage(output, tmp_path / "old", "old")
    loser = Bucket(output, tmp_path / "loser")
    loser.published()

    def lose():
        with loser.staging() as folder:
            fill(loser, folder, "loser", plan="b" * 32)
            stage(output, tmp_path / "winner", "winner", plan="c" * 32, request="two")

    with pytest.raises(BusyError, match="meanwhile"):
        lose()

    assert version(output) == ("two", {f"{'c' * 32}/mask.tif": b"winner"})


def test_a_lost_answer_is_no_lost_race(output, tmp_path, monkeypatch):
    """The record was written, the answer was not seen, and the retry was refused."""
    put = obstore.put

    def put_twice(store, path, *args, **options):
        if path == "run.json":
            put(store, path, *args, **options)
        return put(store, path, *args, **options)

    monkeypatch.setattr(obstore, "put", put_twice)

    stage(output, tmp_path, "mine")

    assert version(output) == ("one", {f"{'a' * 32}/mask.tif": b"mine"})


def test_holes_that_are_filled_change_no_listed_object(output, tmp_path):
    """The plan is the same one, so its complete outputs need another home."""
    stage(output, tmp_path, "with holes", status="partial")
    before = set(listed(output)) - {"run.json"}

    place = Bucket(output, tmp_path)
    place.published()
    with place.staging() as folder:
        fill(place, folder, "whole")
        record = json.loads((folder / "run.json").read_text())
        assert not before & {item["path"] for item in record["outputs"]}

    assert version(output) == ("one", {f"{'a' * 32}/mask.tif": b"whole"})
    assert {"run.json", f"{'a' * 32}/mask.tif"} == set(map(plain, listed(output)))


def test_old_objects_that_cannot_be_deleted_are_no_failure(
    output, tmp_path, monkeypatch
):
    stage(output, tmp_path, "old")

    def refuse(*_args):
        raise GenericError("no")

    monkeypatch.setattr(obstore, "delete", refuse)
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0)
    stage(output, tmp_path, "new", plan="b" * 32)

    assert version(output)[1] == {f"{'b' * 32}/mask.tif": b"new"}


def test_a_large_object_goes_up_in_parts(output, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_PART_BYTES", 5 << 20)  # the least that S3 takes
    data = os.urandom(12_000_000)
    (tmp_path / "large").write_bytes(data)

    Objects(output).write("large", tmp_path / "large")

    assert data == fetch(output, "large")
    assert listed(output)["large"][0].endswith('-3"')


# What is refused


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"outputs": []}',
        json.dumps(
            {
                "request_id": "",
                "plan_id": "",
                "status": "complete",
                "outputs": [{"path": "../other/mask.tif", "bytes": 1}],
            }
        ),
    ],
)
def test_a_record_of_others_is_never_ours(output, tmp_path, text):
    place = Bucket(output, tmp_path)
    Objects(output).write("run.json", text.encode())

    with pytest.raises(OutputError, match=r"run\.json is none of tileseg"):
        place.published()


@pytest.mark.parametrize("path", ["notes.txt", "mask.tif", "2024/mask.tif"])
def test_a_prefix_of_others_is_never_ours(output, job, path):
    Objects(output).write(path, b"mine")
    before = listed(output)

    record = run(job(overwrite=True))

    assert record.values["exit_code"] == ExitCode.OUTPUT
    assert "no run.json of tileseg" in str(record.error)
    assert before == listed(output)


@pytest.mark.parametrize(
    "fault",
    [
        ("AWS_SECRET_ACCESS_KEY", "hush-horse", ExitCode.OUTPUT),
        ("AWS_ACCESS_KEY_ID", "hush-nobody", ExitCode.OUTPUT),
        ("AWS_ENDPOINT_URL", "http://me:hush@127.0.0.1:1", ExitCode.STORAGE),
    ],
)
def test_a_store_that_says_no_is_told_in_one_line_without_a_secret(
    monkeypatch, output, job, tmp_path, fault
):
    name, value, code = fault
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0)
    monkeypatch.setenv(name, value)
    words = ["segment", "--input", job().input, "--model", job().model]
    words += ["--output", output, "--work", job().work, "-v"]

    result = CliRunner().invoke(main, list(map(str, words)))

    assert result.exit_code == code
    told = [line for line in result.stderr.splitlines() if line.startswith("tileseg:")]
    assert len(told) == 1
    assert told[0].startswith(f"tileseg: {output}: run.json cannot be read (")
    everything = result.output + "".join(
        item.read_text() for item in tmp_path.rglob("*.json")
    )
    for secret in (SECRET, "hush", "127.0.0.1", "Debug"):
        assert secret not in everything


def test_a_bucket_that_is_not_there_is_an_output_error(tmp_path):
    place = Bucket("s3://nowhere/maps", tmp_path)

    with pytest.raises(OutputError, match="404 NoSuchBucket"):
        place.published()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_store_that_keeps_failing_is_a_storage_error(
    output, tmp_path, monkeypatch, status
):
    def fail(*_args, **_options):
        msg = f"Server returned non-2xx status code: {status} <Code>SlowDown</Code>"
        raise GenericError(msg)

    monkeypatch.setattr(obstore, "get", fail)
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0)

    with pytest.raises(StorageError, match=f"{status} SlowDown.*later"):
        Bucket(output, tmp_path).published()


def test_without_the_library_the_extra_is_named(monkeypatch, job):
    monkeypatch.setattr(objects, "find_spec", lambda _name: None)

    with pytest.raises(UsageError, match=r"pip install 'tileseg\[remote\]'"):
        open_place(job())


@pytest.mark.parametrize("field", ["output", "work"])
@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3://maps",
        "s3://maps/",
        "s3://maps//a",
        "s3://maps/../a",
        "s3://me:hush@maps/a",
        "az://maps/a?sig=hush",
        "https://maps/a",
    ],
)
def test_an_address_that_may_hold_a_secret_is_refused_and_not_repeated(field, address):
    with pytest.raises(UsageError, match=f"{field}: wanted") as caught:
        Job(**{"input": "scene.tif", "output": "out", field: address})

    assert "hush" not in str(caught.value)


def test_a_night_does_not_repeat_a_secret_either(scene):
    words = ["nightly", "--scenes", scene.parent, "--output", "s3://me:hush@maps/a"]

    result = CliRunner().invoke(main, list(map(str, words)))

    assert result.exit_code == ExitCode.USAGE
    assert "hush" not in result.output


def test_unfinished_work_stays_on_the_disk():
    assert Job(input="a.tif", output="s3://b/maps/2024/").work_path == Path(
        "out/2024.work"
    )


# Kept, parked, put back


def several(output, work, *, keep=2):
    """Publish three versions, and park a fourth; return the last place."""
    for name in "abc":
        stage(output, work, name, plan=name * 32, request=name, keep=keep)
    return stage(output, work, "d", plan="d" * 32, request="d", status="parked")


def state(output):
    """Return what is live, kept and parked, by request, of those that are whole."""
    place, there = Bucket(output, Path("/nowhere")), listed(output)
    live, parked = place.published(), place.parked()
    kept = [version.record for version in place.kept()]
    for record in filter(None, (live, parked, *kept)):
        assert {item["path"] for item in record["outputs"]} <= set(there)
    return (
        live["request_id"],
        [it["request_id"] for it in kept],
        parked and parked["request_id"],
    )


def test_versions_are_kept_and_put_back_by_their_records_alone(output, tmp_path):
    """No product is copied, and sweeping leaves what is kept or parked."""
    several(output, tmp_path)
    products = {path for path in listed(output) if path.endswith(".tif")}
    assert state(output) == ("c", ["b", "a"], "d")

    Bucket(output, tmp_path).roll_back("a" * 32)
    assert state(output) == ("a", ["c", "b"], "d")
    assert Bucket(output, tmp_path).rolled_back() == {"c"}
    assert version(output) == ("a", {f"{'a' * 32}/mask.tif": b"a"})
    Bucket(output, tmp_path).roll_back()
    assert state(output) == ("c", ["a", "b"], "d")

    next_second()
    record = Bucket(output, tmp_path, keep=3).release()

    assert state(output) == ("d", ["c", "a", "b"], None)
    assert (record["status"], record["promoted"]["by"]) == ("complete", "release")
    assert products == {path for path in listed(output) if path.endswith(".tif")}
    assert Bucket(output, tmp_path).rolled_back() == frozenset()

    next_second()
    stage(output, tmp_path, "e", plan="e" * 32, request="e", keep=1)

    assert state(output) == ("e", ["d"], None)
    left = {plain(path).partition("/")[0] for path in listed(output)}
    assert left == {"run.json", "versions", "d" * 32, "e" * 32}


def test_a_prefix_with_a_parked_result_only_is_ours(output, tmp_path):
    stage(output, tmp_path, "d", plan="d" * 32, request="d", status="parked")
    assert Bucket(output, tmp_path).published() is None

    Bucket(output, tmp_path).release()

    assert state(output) == ("d", [], None)


def test_a_parked_result_is_discarded(output, tmp_path):
    several(output, tmp_path, keep=0)

    Bucket(output, tmp_path).discard_parked()

    assert state(output) == ("c", [], None)
    assert {"run.json", f"{'c' * 32}/mask.tif"} == set(map(plain, listed(output)))


def test_who_parks_late_takes_nothing_back(output, tmp_path):
    """What was uploaded before another published is swept as left by a killed run."""
    stage(output, tmp_path, "a", plan="a" * 32, request="a")
    late = Bucket(output, tmp_path / "late")
    late.published()

    def be_late():
        with late.staging() as folder:
            fill(late, folder, "d", plan="d" * 32, request="d", status="parked")
            stage(output, tmp_path, "b", plan="b" * 32, request="b")

    with pytest.raises(BusyError, match="meanwhile"):
        be_late()

    assert state(output) == ("b", [], None)


ACTS = {
    "publish": lambda output, work: stage(
        output, work, "e", plan="e" * 32, request="e", keep=2
    ),
    "roll back": lambda output, work: Bucket(output, work).roll_back("a" * 32),
    "release": lambda output, work: Bucket(output, work, keep=2).release(),
}


@pytest.mark.parametrize(
    ("act", "moment"),
    [
        ("publish", "after"),
        ("roll back", "after"),
        pytest.param("publish", "before", marks=pytest.mark.slow),
        pytest.param("roll back", "before", marks=pytest.mark.slow),
        pytest.param("release", "before", marks=pytest.mark.slow),
        pytest.param("release", "after", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_write_loses_nothing_that_should_stay(
    output, tmp_path, monkeypatch, act, moment
):
    """Live is the old version or the new one; the others are kept, now and later."""
    new = {"publish": "e", "roll back": "a", "release": "d"}[act]
    real = {"put": obstore.put, "delete": obstore.delete}
    is_done, number = False, 0
    while not is_done:
        here, left = f"{output} {number}", [number]
        several(here, tmp_path)

        def count_down(name, left=left):
            def call(*args, **options):
                left[0] -= 1
                if left[0] == -1 and moment == "before":
                    raise CrashError
                answer = real[name](*args, **options)
                if left[0] == -1:
                    raise CrashError
                return answer

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(obstore, name, count_down(name))
            try:
                ACTS[act](here, tmp_path)
                is_done = True
            except CrashError:
                pass
        live, kept, parked = state(here)
        assert live == new if is_done else live in ("c", new)
        assert {"b", "c"} <= {live, *kept}
        assert "a" in {live, *kept} or live != "c"
        assert parked == "d" or live in ("d", "e")
        Bucket(here, tmp_path).sweep()
        assert state(here) == (live, kept, parked)
        stage(here, tmp_path, "f", plan="f" * 32, request="f", status="parked")
        assert state(here) == (live, kept, "f")
        Bucket(here, tmp_path).discard_parked()
        assert state(here) == (live, kept, None)
        number += 1

    assert number > 3


def test_a_refused_result_is_parked_in_the_store(job, output):
    """It is judged again from its record, and by the history of its series."""
    output = f"{output}/scene"  # in a series of its own
    first = succeed(job(output=output, keep=1))
    before = version(output)
    facts = {"output": output, "blend": "cosine", "keep": 1, "overwrite": True}
    wish = job(**facts, gates={"nodata": 0.0})

    refused, again = run(wish), run(wish)

    assert refused.values["status"] == again.values["status"] == "parked"
    assert refused.values["outputs"] == again.values["outputs"]
    assert before == version(output)
    paths = {item["path"] for item in refused.values["outputs"]}
    assert paths <= set(listed(output))

    gates = {"class_jump": 1, "history_least": 1}
    values = succeed(job(**facts, gates=gates))

    (gate,) = (it for it in values["gates"] if it["name"] == "class_jump")
    assert gate["passed"] is True
    assert "last 1" in gate["wanted"]
    assert state(output) == (values["request_id"], [first["request_id"]], None)


def test_a_series_in_the_store_lists_the_item_that_is_live(
    tmp_path, scene, model_path, output
):
    words = ["nightly", "--scenes", scene.parent, "--output", output, "--overwrite"]
    words += ["--model", model_path, "--work", tmp_path / "work", "--config"]
    (tmp_path / "job.toml").write_text("keep = 1\n")
    for more in ([], ["--confidence"]):
        line = [*words, tmp_path / "job.toml", *more]
        assert CliRunner().invoke(main, list(map(str, line))).exit_code == 0

    rolled = CliRunner().invoke(main, ["rollback", f"{output}/scene"])

    assert rolled.exit_code == 0
    (link,) = json.loads(fetch(output, "collection.json"))["links"]
    record = json.loads(fetch(f"{output}/scene", "run.json"))
    (path,) = (it["path"] for it in record["outputs"] if "item.json" in it["path"])
    assert link["href"] == f"./scene/{path}"
    assert not any("confidence" in it["path"] for it in record["outputs"])
