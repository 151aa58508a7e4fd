# Runs a program and leaves its exit status in the file $1, whole or not at all: for a caller that cannot wait for it.
status_file=$1
shift
"$@"
echo $? >"$status_file.part"
mv "$status_file.part" "$status_file"
