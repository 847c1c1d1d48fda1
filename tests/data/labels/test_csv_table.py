"""Tables of labels, as people, spreadsheets and pandas write them."""

import pytest

from tests.helpers.labels import labels_of, refusal, save_images

EXPECTED = {"a": {"cat", "dog"}, "b": {"dog"}, "c": {"cat"}, "d": set()}


@pytest.fixture
def root(tmp_path):
    save_images(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    return tmp_path


def read(root, text, encoding="utf-8", name="labels.csv", **data):
    (root / name).write_text(text, encoding=encoding, newline="")
    return labels_of(root, labels=name, **data)


@pytest.mark.parametrize("header", [
    "image,labels", "filename,label", "file,tags", "path,class", "Image Name,Labels",
    "file_path,category", "img,Classes", "FileName,tag", "id,label", "fname,labels",
])
def test_headers(root, header):
    assert read(root, f"{header}\na.jpg,cat;dog\nb,dog\nc.jpg,cat\nd,\n") == EXPECTED


@pytest.mark.parametrize("text", [
    "image;labels\na.jpg;cat,dog\nb.jpg;dog\nc.jpg;cat\nd.jpg;\n",
    "image\tlabels\na.jpg\tcat;dog\nb.jpg\tdog\nc.jpg\tcat\nd.jpg\t\n",
    '"image";"labels"\r\n"a.jpg";"cat|dog"\r\n"b.jpg";"dog"\r\n"c.jpg";"cat"\r\n"d.jpg";""\r\n',
    'image,labels\na.jpg,"cat, dog"\nb.jpg,dog\nc.jpg,cat\nd.jpg,\n',
    "image,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,cat\nd.jpg,\n",
    "image,labels\na.jpg,cat/dog\nb.jpg,dog\nc.jpg,cat\nd.jpg,\n",
    "image,labels\na.jpg,\"['cat', 'dog']\"\nb.jpg,['dog']\nc.jpg,\"[\"\"cat\"\"]\"\nd.jpg,[]\n",
    "image,labels\na.jpg,\"[cat, dog]\"\nb.jpg,[dog]\nc.jpg,cat\nd.jpg,[]\n",
    'image,choice\na.jpg,"{""choices"":[""cat"",""dog""]}"\nb.jpg,dog\nc.jpg,cat\nd.jpg,\n',
    "sep=;\nimage;labels\na.jpg;cat,dog\nb.jpg;dog\nc.jpg;cat\nd.jpg;\n",
    "labels,image\ncat;dog,a.jpg\ndog,b.jpg\ncat,c.jpg\n,d.jpg\n",
    ",image,labels\n0,a.jpg,cat;dog\n1,b.jpg,dog\n5,c.jpg,cat\n3,d.jpg,\n",
    "Unnamed: 0,image,labels\n0,a.jpg,cat;dog\n1,b.jpg,dog\n2,c.jpg,cat\n3,d.jpg,\n",
    "image,labels,width,split\na.jpg,cat;dog,12,x\nb.jpg,dog,12,x\nc,cat,12,x\nd,,12,y\n",
    "filename,width,class,xmin\na.jpg,12,cat,1\na.jpg,12,dog,2\nb.jpg,12,dog,1\nc.jpg,12,cat,1\n"
    "d.jpg,12,,1\n",
    "label_name,bbox_x,image_name\ncat,1,a.jpg\ndog,2,a.jpg\ndog,1,b.jpg\ncat,1,c.jpg\n,,d.jpg\n",
    "image,labels,,\na.jpg,cat;dog,,\nb.jpg,dog,,\nc.jpg,cat,,\nd.jpg,,,\n",
    "filename, cat, dog, is_valid\na.jpg, 1, 1, 0\nb.jpg, 0, 1, 1\nc, 1, 0, 0\nd, 0, 0, 0\n",
    "image;split;cat;dog;fold\na.jpg;x;1;1;3\nb.jpg;x;0;1;2\nc.jpg;y;1;0;1\nd.jpg;y;0;0;1\n",
    "ImageID,Source,LabelName,Confidence\na,v,cat,1\na,v,dog,1\nb,v,cat,0\nb,v,dog,1\nc,v,cat,1\n"
    "d,v,dog,0.0\n",
    "image,id,choice,lead_time\na.jpg,7,cat;dog,1\nb,8,dog,1\nc,9,cat,1\nd,1,,1\n",
    "image,cat,dog\na.jpg,1,1\nb.jpg,0,1\nc.jpg,1,0\nd.jpg,0,0\n",
    "image;cat;dog\na.jpg;1.0;1.0\nb.jpg;0.0;1.0\nc.jpg;1.0;0.0\nd.jpg;0.0;0.0\n",
    ",filename,cat,dog\n0,a.jpg,True,True\n1,b.jpg,False,True\n2,c,True,False\n3,d,FALSE,false\n",
    ",cat,dog\na.jpg,1,1\nb.jpg,0,1\nc.jpg,1,0\nd.jpg,0,0\n",
    "filename, cat, dog\na.jpg, 1, 1\nb.jpg, 0, 1\nc.jpg, 1, 0\nd.jpg, 0, 0\n",
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_dialects(root, text, encoding):
    assert read(root, text, encoding) == EXPECTED


def test_what_is_found_is_said_in_one_line(root, capsys):
    read(root, "image;labels;width\na;cat,dog;1\nb;dog;1\nc;cat;1\nd;;1\n")
    assert capsys.readouterr().err == (
        f"note: {root}/labels.csv: 4 images, 2 classes, CSV, labels between ',', without column "
        "'width'\n"
    )
    read(root, "image,cat,dog,bird\na,1,1,0\nb,0,1,0\nc,1,0,0\nd,0,0,0\n", name="x.tsv")
    assert "4 images, 3 classes, CSV, one column per class\n" in capsys.readouterr().err


def test_a_class_that_is_called_like_a_column_of_labels(root):
    text = "image,tag,cat\na,1,1\nb,1,0\nc,0,1\nd,0,0\n"
    assert read(root, text) == {"a": {"tag", "cat"}, "b": {"tag"}, "c": {"cat"}, "d": set()}


@pytest.mark.parametrize("fields, expected", [
    (["traffic light", "hot dog", "dog", ""], ["traffic light", "hot dog", "dog"]),
    (["a/c unit", "dog", "cat", ""], ["a/c unit", "dog", "cat"]),
    (["cat, small;dog", "dog", "cat, big", ""], ["cat, small", "dog", "cat, big"]),
])
def test_marks_within_names(root, fields, expected):
    rows = "".join(f'{name},"{field}"\n' for name, field in zip("abcd", fields, strict=True))
    assert set.union(*read(root, "image,labels\n" + rows).values()) == set(expected)


def test_a_comma_that_may_be_of_a_name_is_asked_for(root):
    text = 'image,labels\na,"dog, big"\nb,cat\nc,cat\nd,\n'
    (root / "labels.csv").write_text(text)
    message = refusal(root, labels="labels.csv")
    assert "line 2: 'dog, big' may be one label or several; set data.label_separator" in message
    one = read(root, text, label_separator="none")
    assert one == {"a": {"dog, big"}, "b": {"cat"}, "c": {"cat"}, "d": set()}
    assert read(root, text, label_separator=",")["a"] == {"dog", "big"}
    (root / "classes.txt").write_text("cat\ndog, big\n")
    assert read(root, text, classes="classes.txt") == one
    (root / "classes.txt").write_text("cat\nbig\ndog\n")
    assert read(root, text, classes="classes.txt")["a"] == {"dog", "big"}


def test_blanks_separate_where_that_is_said_or_the_classes_are_known(root):
    text = "image,labels\na,cat dog\nb,dog\nc,cat\nd,\n"
    (root / "labels.csv").write_text(text)
    message = refusal(root, labels="labels.csv")
    assert "line 2: 'cat dog' may be one label or several; set data.label_separator" in message
    assert read(root, text, label_separator="none")["a"] == {"cat dog"}
    names = "image,labels\na,golden retriever\nb,labrador retriever\nc,cat\nd,\n"
    assert read(root, names)["a"] == {"golden retriever"}, "golden is no label elsewhere"
    assert read(root, text, label_separator="space") == EXPECTED
    (root / "classes.txt").write_text("cat\ndog\n")
    assert read(root, text, classes="classes.txt") == EXPECTED


@pytest.mark.parametrize("text, message", [
    ("image,labels\na,cat;dog\nb,cat|dog\n", "line 3: labels are joined by ';' in some fields"),
    ("image,label\na,0\nb,1\nc,0\n", "the column 'label' holds nothing but 0 and 1"),
    ("image,file,labels\na,b,cat\n", "the columns 'image' and 'file' could both name the images"),
    ("image,label,tags\na,cat,dog\n", "the columns 'label' and 'tags' could both be the labels"),
    ("image,label,is_valid\na,0,1\nb,1,0\nc,0,1\n", "the column 'label' holds nothing but 0"),
    ("image,split\na,1\nb,0\n", "beside the images no column names labels or a class"),
    ('"image" "label"\n"1" "a" "cat"\n', "with ',', ';' or tabs between them; it is"),
    ("image|label\na|cat\n", "with ',', ';' or tabs between them; it is 'image|label'"),
    ("image,label\na,cat\na,dog\n", "remove one, or join the labels of both in one"),
    ("image;cat;dog\na;1;2\n", "line 2: '2' in the column 'dog' where 0 or 1 belongs"),
    (",image,labels\n0,a,cat\n0,b,dog\n", "the first column has no name"),
    ("image;labels\na;cat;dog\n", "line 2: 3 fields where the header has 2; separate columns with "
     "';', and put a field that holds it in quotes (\"cat;dog\")"),
    ("image,labels\na,\"['cat', 'dog\"\n", "line 2: '['cat', 'dog' begins as a list of labels"),
    ("image,labels\na,[[cat]]\n", "line 2: '[[cat]]' begins as a list of labels"),
    ('image,labels\na,"{""choices"": 3}"\n', "line 2: choices must be a list, not 3"),
    ("cat,dog\n1,0\n", "the first line must be the header"),
    ("only\na\n", "the first line must be the header"),
])
def test_what_could_be_one_or_the_other_is_asked_for(root, text, message):
    (root / "labels.csv").write_text(text)
    assert message in refusal(root, labels="labels.csv")


def test_a_long_list_that_is_none_is_refused_at_once(root):
    (root / "labels.csv").write_text(f"image,labels\na,\"['{'a' * 1900} {'b ' * 900}\"\n")
    assert "begins as a list" in refusal(root, labels="labels.csv")


@pytest.mark.parametrize("name", ["_classes.csv", "_annotations.csv", "labels.csv"])
def test_a_table_beside_the_images(root, capsys, name):
    text = "image, cat, dog\na.jpg, 1, 1\nb.jpg, 0, 1\nc, 1, 0\nd, 0, 0\n"
    (root / "images" / name).write_text(text)
    assert labels_of(root) == EXPECTED
    assert f"images/{name}: 4 images, 2 classes" in capsys.readouterr().err


def test_what_is_told_of_rows_and_labels(root, capsys):
    read(root, "image,class,xmin\na,cat,1\na,dog,2\n")
    assert "CSV, one row per label, without column 'xmin'" in capsys.readouterr().err
    read(root, "image,label\na,\"['cat', 'dog']\"\nb,cat\n")
    assert "CSV, labels as lists" in capsys.readouterr().err


def test_a_workbook_is_no_table_of_text(root):
    (root / "labels.xlsx").write_bytes(b"PK\3\4\0\0")
    assert "no labels of a known format" in refusal(root, labels="labels.xlsx")
