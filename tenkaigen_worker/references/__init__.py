"""Pictures that users give: uploaded, made by an earlier job, or fetched from an allowed host."""
